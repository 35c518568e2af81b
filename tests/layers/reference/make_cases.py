"""Writes one file per row of op_cases.def: inputs, and what JAX in float64 says the operator makes of them.

usage: make_cases.py op_cases.def OUTPUT_FOLDER [STAMP_FILE]
"""

import os
import re
import sys
from pathlib import Path

# Compilation is the cost here, not speed of what is compiled.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
import jax

jax.config.update("jax_enable_x64", True)

import ops_attention
import ops_rows
import ops_slab
import philox
from case import Case

ROW = re.compile(r'^LY_CASE\((\w+), (\w+), "([^"]*)"\)$', re.MULTILINE)


def value(text):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def function_of(op):
    for module in (ops_rows, ops_attention, ops_slab):
        if hasattr(module, op):
            return getattr(module, op)
    sys.exit(f"make_cases.py: no reference for operator {op}; write a function {op}(case, ...) in reference/")


def main():
    table, folder = Path(sys.argv[1]), Path(sys.argv[2])
    philox.check()
    folder.mkdir(parents=True, exist_ok=True)
    rows = ROW.findall(table.read_text())
    if not rows:
        sys.exit(f"make_cases.py: no LY_CASE rows in {table}")
    for op, name, text in rows:
        parameters = {k: value(v) for k, v in (word.split("=") for word in text.split())}
        case = Case(op, name)
        function_of(op)(case, **parameters)
        case.write(folder / f"{op}-{name}.case")
    if len(sys.argv) > 3:
        Path(sys.argv[3]).write_text(f"{len(rows)} cases\n")


if __name__ == "__main__":
    main()

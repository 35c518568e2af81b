"""Object files: names carry their folder's prefix, folders call only those below them, and no file keeps mutable state."""

import json
import os
import re
import subprocess
import sys

from lintlib import UNITS, Check, missing_tool, unit_of

# What is looked up by a fixed name: by the system, and by megac/base/device.c in the CUDA module, whose table of base's
# needs the operators above.
ENTRIES = {("megac/train/main.c", "main"), ("layers/module_cuda.c", "mc_device_cuda")}

# Sections whose objects are constant once the program runs (pointers in const tables are relocated, then read-only).
CONSTANT = re.compile(r"^\.(rodata|data\.rel\.ro|eh_frame|gcc_except_table|init_array|fini_array|note)")
ROW = re.compile(r"^\s*\d+:\s+[0-9a-f]+\s+\S+\s+(\w+)\s+(\w+)\s+\w+\s+(?:\[.*?\]\s+)?(\S+)(?:\s+(\S+))?\s*$")
SECTION = re.compile(r"^\s*\[\s*(\d+)\]\s+(\S+)")


def objects(check):
    """(source, object) of the folders' files, from the build's compile commands; one source may have several objects."""
    database = check.build / "compile_commands.json"
    if not database.is_file():
        return
    for entry in json.loads(database.read_text(encoding="utf-8")):
        source = os.path.relpath(os.path.join(entry["directory"], entry["file"]), check.root).replace(os.sep, "/")
        output = os.path.join(entry["directory"], entry["output"])
        if unit_of(source) and os.path.exists(output):
            yield source, output


def symbols(path):
    """(name, type, binding, section) of every symbol; section "UND" for what another file must define."""
    run = ["readelf", "-W", "-S", "-s", path]
    sections, rows = {}, []
    for line in subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines():
        if match := SECTION.match(line):
            sections[match.group(1)] = match.group(2)
        elif match := ROW.match(line):
            kind, binding, index, name = match.groups()
            if name:
                rows.append((name, kind, binding, sections.get(index, index)))
    return rows


def owner_by_prefix(name):
    for unit, (prefix, _) in UNITS.items():
        if name.startswith(prefix):
            return unit
    return None


def check_object(check, source, rows, defined_in, allowed, used):
    unit = unit_of(source)
    prefix, may_use = UNITS[unit]
    for name, kind, binding, section in rows:
        if section == "UND":
            owner = defined_in.get(name) or owner_by_prefix(name)
            if owner and owner not in may_use:
                check.find(source, 0, f"calls {name} of {owner}; {unit} may use: {', '.join(may_use)}")
            continue
        if binding in ("GLOBAL", "WEAK") and not name.startswith(prefix) and (source, name) not in ENTRIES:
            check.find(source, 0, f"exports {name}; make it static or name it {prefix}...")
        if kind in ("OBJECT", "TLS", "COMMON") and not CONSTANT.match(section):
            plain = name.split(".")[0]
            if (source, plain) in allowed:
                used.add((source, plain))
            else:
                check.find(source, 0, f"keeps mutable state in {plain} ({section}); pass it as an argument instead")


def main(argv=None):
    check = Check("check_symbols", argv)
    try:
        subprocess.run(["readelf", "--version"], capture_output=True, check=True)
    except OSError:
        missing_tool(check, "readelf")
    tables = sorted((source, symbols(output)) for source, output in objects(check))
    defined_in = {
        name: unit_of(source)
        for source, rows in tables
        for name, _, binding, section in rows
        if section != "UND" and binding != "LOCAL"
    }
    allowed = {(words[0], words[1]): number for number, words in check.allowed("allow_symbols.txt", 2)}
    used = set()
    for source, rows in tables:
        check.examined += 1
        check_object(check, source, rows, defined_in, allowed, used)
    for (source, name), number in allowed.items():
        if (source, name) not in used:
            check.find("tests/lint/allow_symbols.txt", number, f"{source} has no mutable {name}: remove the row")
    return check.finish("object files")


if __name__ == "__main__":
    sys.exit(main())

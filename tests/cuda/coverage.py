#!/usr/bin/env python3
"""How much of the CUDA backend the tests without a GPU execute: lines of its host code, and kernels (gcov).

Compiles the module, comm_staged.c and the kernels of g++ once more with --coverage into BUILD/coverage, with the flags of
BUILD's compile_commands.json, runs the suites of this folder on them, and prints a table, the lines that no test
reached, and kernels that no test launched. BUILD must have been built. Ends with status 1 below --least percent or if a
kernel is missing."""
import argparse
import collections
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUITES = [  # program, arguments, settings
    ("test_device_cuda", [], {}),
    ("test_faults_cuda", [], {}),
    ("test_attention_cuda", [], {}),
    ("test_gemm_cuda", [], {}),
    ("test_gemm_cuda", [], {"MC_GEMM_AUTOTUNE": "1"}),
    ("test_kernel_types", [], {}),
    ("test_attention_kernels", [], {}),
    ("test_kernels", ["CASES"], {}),
    ("../layers/test_ops_reference", ["CASES", "cuda"], {}),
]
PYTEST = ["test_messages.py", "test_train_cuda.py"]
# A process that MPI_Abort kills writes nothing: it ends by exit() here, and mpirun ends the others.
ABORT = "#include <stdlib.h>\nint MPI_Abort(void *comm, int code) { (void)comm; exit(code); }\n"


def sh(*command, cwd=None, **kw):
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, errors="replace", **kw)
    if done.returncode:
        sys.exit(f"{shlex.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


class Build:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder).resolve()
        self.out = self.folder / "coverage"
        self.commands = json.loads((self.folder / "compile_commands.json").read_text())
        self.standin = self.folder / "tests/cuda/standin"

    def compile(self, prefix):
        """Objects of the target whose outputs begin with the prefix, instrumented."""
        objects = []
        for entry in self.commands:
            if not entry["output"].startswith(prefix):
                continue
            obj = self.out / "objects" / entry["output"].replace("/", "_")
            words = shlex.split(entry["command"])
            for flag in ("-o", "-MF", "-MQ"):
                at = words.index(flag)
                del words[at : at + 2]
            words.remove("-MD")
            print(f"compiling {obj.name}", file=sys.stderr)
            sh(*words, "--coverage", "-fprofile-update=atomic", "-o", obj, cwd=self.folder)
            objects.append(obj)
        return objects

    def make(self):
        shutil.rmtree(self.out, ignore_errors=True)
        kernels = self.out / "tests/cuda/kernels/libmegac_kernels.so"
        (self.out / "objects").mkdir(parents=True)
        kernels.parent.mkdir(parents=True)
        (self.out / "tests/cuda/standin").symlink_to(self.standin)
        # The runtime of on_cpu whole, and not instrumented: its fibers are none of gcov's business.
        sh("g++", "-shared", "-o", kernels, *self.compile("tests/cuda/kernels/libmegac_kernels.so.p/"), "--coverage",
           "-Wl,--whole-archive", self.folder / "tests/cuda/libon_cpu.a", "-Wl,--no-whole-archive", "-pthread",
           cwd=self.folder)  # fmt: skip
        libraries = [self.standin / name for name in ("libcudart.so.13", "libcublasLt.so.13", "libnccl.so.2")]
        sh("gcc", "-shared", "-o", self.out / "libmegac_cuda.so", *self.compile("libmegac_cuda.so.p/"), "--coverage",
           "-Wl,--allow-shlib-undefined", kernels, *libraries)  # fmt: skip
        self.link_program()
        (self.out / "abort.c").write_text(ABORT)
        sh("gcc", "-shared", "-fPIC", "-o", self.out / "libabort.so", self.out / "abort.c")

    def link_program(self):
        """The program with an instrumented comm_staged.c in place of the one in libmegac_base.a."""
        staged = self.compile("libmegac_base.a.p/megac_base_comm_staged")
        members = sh("ar", "t", "libmegac_base.a", cwd=self.folder).split()
        kept = [m for m in members if "comm_staged" not in m]
        link = sh("ninja", "-t", "commands", "megac", cwd=self.folder).splitlines()[-1]
        link = link.replace(" -o megac ", f" -o {self.out / 'megac'} --coverage ")
        sh("bash", "-c", link.replace(" libmegac_base.a ", f" {shlex.join([*kept, *map(str, staged)])} "), cwd=self.folder)

    def run(self):
        folders = [self.out, self.standin, self.out / "tests/cuda/kernels"]
        env = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, folders)), "MEGAC_BUILD": str(self.out)}
        env["MC_GEMM_AUTOTUNE"] = "0"
        for program, arguments, settings in SUITES:
            cases = str(self.folder / "tests/layers/op_cases")
            line = [self.folder / "tests/cuda" / program, *(cases if a == "CASES" else a for a in arguments)]
            print("running", program, *arguments, file=sys.stderr)
            sh(*line, env={**env, **settings}, timeout=900)
        print("running", *PYTEST, file=sys.stderr)
        sh(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PYTEST, cwd=ROOT / "tests/cuda",
           env={**env, "LD_PRELOAD": str(self.out / "libabort.so")}, timeout=1800)  # fmt: skip

    def counts(self):
        """{file: {line: executions}} and {file: {function: executions}}, by paths in the repository."""
        lines = collections.defaultdict(collections.Counter)
        functions = collections.defaultdict(collections.Counter)
        for data in sorted((self.out / "objects").glob("*.gcda")):
            report = json.loads(sh("gcov", "--json-format", "--stdout", data, cwd=self.folder).splitlines()[0])
            for file in report["files"]:
                path = pathlib.Path(os.path.normpath(self.folder / file["file"]))
                if ROOT not in path.parents:
                    continue
                name = str(path.relative_to(ROOT))
                for line in file["lines"]:
                    lines[name][line["line_number"]] += line["count"]
                for f in file["functions"]:
                    functions[name][f["demangled_name"]] += f["execution_count"]
        return lines, functions


def ranges(numbers):
    """ "3-5, 9" """
    runs = []
    for n in numbers:
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def show_host(lines):
    """Prints the table of the host code and returns its percentage."""
    total = reached = 0
    print("| file | lines | executed | not executed |\n|---|---|---|---|")
    for name in sorted(lines):
        if not name.endswith(".c"):
            continue
        missing = sorted(n for n, count in lines[name].items() if count == 0)
        have, all_lines = len(lines[name]) - len(missing), len(lines[name])
        print(f"| `{name}` | {all_lines} | {100 * have / all_lines:.1f} % | {ranges(missing)} |")
        total, reached = total + all_lines, reached + have
    print(f"| all | {total} | {100 * reached / total:.1f} % | |")
    return 100 * reached / total


def show_kernels(functions):
    """Prints the kernels and returns those that never ran."""
    declared = set()
    head = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\(.*?\)\s+)?(\w+)\(", re.DOTALL)
    for path in [*ROOT.glob("layers/*.cu"), *ROOT.glob("layers/cuda/*.cuh")]:
        declared |= set(head.findall(path.read_text()))
    ran, made = collections.Counter(), collections.Counter()
    for table in functions.values():
        for name, count in table.items():
            kernel = re.sub(r"^void ", "", name).split("<")[0].split("(")[0]
            if kernel in declared:
                made[kernel] += 1
                ran[kernel] += count > 0
    idle = sorted(k for k in declared if ran[k] == 0)
    print(f"\n{len(declared) - len(idle)} of {len(declared)} kernels executed, in {sum(ran.values())} of "
          f"{sum(made.values())} instances (types, widths).")  # fmt: skip
    print("never:", ", ".join(idle) or "none")
    partly = [f"{k} {ran[k]}/{made[k]}" for k in sorted(declared) if ran[k] < made[k]]
    print("not in every instance:", ", ".join(partly) or "none")
    return idle


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=ROOT / "build")
    parser.add_argument("--least", type=float, default=95.0, help="percent of the host code's lines (95)")
    parser.add_argument("--no-build", action="store_true", help="run what was compiled the last time")
    parser.add_argument("--no-run", action="store_true", help="only the report of the last run")
    args = parser.parse_args()
    build = Build(args.build)
    if not args.no_build and not args.no_run:
        build.make()
    if not args.no_run:
        build.run()
    lines, functions = build.counts()
    percent = show_host(lines)
    idle = show_kernels(functions)
    return 0 if percent >= args.least and not idle else 1


if __name__ == "__main__":
    sys.exit(main())

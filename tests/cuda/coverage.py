#!/usr/bin/env python3
"""How much of the CUDA backend the tests without a GPU execute: lines of its host code, and kernels (gcov).

Compiles the module, comm_staged.c and the kernels of g++ once more with --coverage into BUILD/coverage, with the flags
of BUILD's compile_commands.json, runs the suites of this folder on them, and prints a table, the lines that no test
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

from cuda_runs import MPI_ENV
from planted import MODEL

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUITES = [  # program, arguments, settings
    ("test_device_cuda", [], {}),
    ("test_faults_cuda", [], {}),
    ("test_attention_cuda", [], {}),
    ("test_gemm_cuda", [], {}),
    ("test_gemm_cuda", [], {"MC_GEMM_AUTOTUNE": "1"}),
    ("test_kernel_types", [], {}),
    ("test_attention_kernels", [], {"LY_TEST_SHAPES": "1 5 12 14 17 22"}),  # each path
    ("test_kernels", ["CASES"], {}),
    ("../layers/test_ops_reference", ["CASES", "cuda"], {}),
]
# The module is linked with the stand-ins here: their absence is no test.
PYTEST = ["test_messages.py", "-k", "not missing_library"]
# Training as test_train_cuda.py and test_planted.py do it, on a small model: ranks, flags, settings of the stand-ins.
SOON = {"STANDIN_DEADLINE": "5"}
TRAIN = [
    (1, "", {}),
    (1, "--bf16 --attention-dropout 0", {}),
    (2, "--tp 2 --sequence-parallel", {}),
    (2, "--pp 2 --hidden-dropout 0.1", {}),
    (2, "--dp 2 --zero 3", {}),
    (2, "--tp 2 --comm mpi", {"STANDIN_DEVICES": "1"}),
    (2, "--pp 2 --comm mpi", {"STANDIN_DEVICES": "1"}),
    (2, "--dp 2 --zero 3 --comm mpi", {"STANDIN_DEVICES": "1"}),
]
TRAIN_FAILS = [
    (2, "--dp 2", {"STANDIN_DEVICES": "1"}),
    (2, "--pp 2", {"STANDIN_FAIL": "cudaEventRecord:20@1", **SOON}),
    (2, "--tp 2", {"STANDIN_NCCL_ERROR": "AllReduce:3@1", **SOON}),
    (2, "--tp 2", {"STANDIN_FAIL": "cudaEventQuery:1@0", **SOON}),
    (2, "--tp 2", {"STANDIN_FAIL": "ncclGetUniqueId:1@0", **SOON}),
    (2, "--tp 2", {"STANDIN_FAIL": "ncclAllReduce:2@0", **SOON}),
    # megac's own deadline, with a stand-in that is more patient
    (2, "--pp 2 --distributed-timeout-minutes 1", {"PLANT": "swap-kind:1@0", "STANDIN_DEADLINE": "100"}),
]
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
            sh(*words, "--coverage", "-o", obj, cwd=self.folder)
            objects.append(obj)
        return objects

    def make(self):
        shutil.rmtree(self.out, ignore_errors=True)
        for folder in ("objects", "kernels", "tests/cuda"):
            (self.out / folder).mkdir(parents=True)
        (self.out / "tests/cuda/standin").symlink_to(self.standin)
        (self.out / "tests/cuda/kernels").symlink_to(self.folder / "tests/cuda/kernels")  # for all but their own suites
        kernels = self.out / "kernels/libmegac_kernels.so"
        # The runtime of on_cpu whole, and not instrumented: its fibers are none of gcov's business.
        sh("g++", "-shared", "-o", kernels, *self.compile("tests/cuda/kernels/libmegac_kernels.so.p/"), "--coverage",
           "-Wl,--whole-archive", self.folder / "tests/cuda/libon_cpu.a", "-Wl,--no-whole-archive", "-pthread",
           cwd=self.folder)  # fmt: skip
        libraries = [self.standin / name for name in ("libcudart.so.13", "libcublasLt.so.13", "libnccl.so.2")]
        sh("gcc", "-shared", "-o", self.out / "libmegac_cuda.so", *self.compile("libmegac_cuda.so.p/"), "--coverage",
           "-Wl,--allow-shlib-undefined", self.folder / "tests/cuda/kernels/libmegac_kernels.so", *libraries)  # fmt: skip
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
        base = shlex.join([*kept, *map(str, staged)])
        sh("bash", "-c", link.replace(" libmegac_base.a ", f" {base} "), cwd=self.folder)

    def run(self):
        folders = [self.out, self.standin, self.out / "tests/cuda/kernels"]
        env = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, folders)), "MEGAC_BUILD": str(self.out)}
        env["MC_GEMM_AUTOTUNE"] = "0"
        kernels = {**env, "LD_LIBRARY_PATH": str(self.out / "kernels")}  # counted, and slow
        for program, arguments, settings in SUITES:
            cases = str(self.folder / "tests/layers/op_cases")
            line = [self.folder / "tests/cuda" / program, *(cases if a == "CASES" else a for a in arguments)]
            print("running", program, *arguments, file=sys.stderr)
            sh(*line, env={**(kernels if "kernel" in program else env), **settings}, timeout=900)
        self.train(env)
        print("running", *PYTEST, file=sys.stderr)
        sh(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PYTEST, cwd=ROOT / "tests/cuda", env=env)

    def train(self, env):
        planted = self.folder / "tests/cuda/race/libplanted.so"
        env = {**env, **MPI_ENV, "LD_PRELOAD": f"{self.out / 'libabort.so'} {planted}"}
        for ranks, flags, settings in TRAIN + TRAIN_FAILS:
            line = [self.out / "megac", "train", *MODEL, "--train-iters", "2", *flags.split()]
            line = ["mpirun", "--timeout", "120", "-n", ranks, *line] if ranks > 1 else line
            print("running", ranks, flags, settings, file=sys.stderr)
            done = subprocess.run(list(map(str, line)), env={**env, **settings}, capture_output=True, text=True)
            if (done.returncode != 0) != ((ranks, flags, settings) in TRAIN_FAILS):
                sys.exit(f"exit status {done.returncode}: {line}\n{done.stderr[-3000:]}")

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

"""What ptxas said of every kernel when the build compiled it: registers, spills, shared memory, for each GPU.

usage: ptxas_report.py [--root DIR] [--build DIR] [--markdown]

Fails where a kernel spills registers without a row in allow_spills.txt, where a kernel that may need more than a block of
1024 threads can have (64 registers each) does not state its __launch_bounds__, and where a kernel file has no report.
--markdown prints the table of tests/bench/RESULTS.md.
"""

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
# A kernel's definition in a source file: its launch bounds, if any, and its name.
KERNEL = re.compile(r"__global__\s+(?:void\s+)?(?:__launch_bounds__\s*\(([^{;]*?)\)\s*)?(?:void\s+)?(\w+)\s*\(")
REGISTERS_OF_1024 = 64


def demangle(names):
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.splitlines()))


def base_name(demangled):
    """norm_fwd_kernel of "void norm_fwd_kernel<float, 4>(float const*)"."""
    return re.search(r"([\w:]+)\s*(?:<.*)?\(", demangled.removeprefix("void ")).group(1).split("::")[-1]


def parse(text):
    """{"entry", "arch", "registers", "spilled", "shared"} of each kernel in one file's report."""
    rows = []
    for line in text.splitlines():
        if match := ENTRY.search(line):
            rows.append({"entry": match[1], "arch": match[2], "registers": 0, "spilled": 0, "shared": 0})
        elif rows and (match := SPILL.search(line)):
            rows[-1]["spilled"] = max(rows[-1]["spilled"], int(match[2]) + int(match[3]))
        elif rows and (match := USED.search(line)):
            rows[-1]["registers"] = int(match[1])
            if match := SHARED.search(line):
                rows[-1]["shared"] = int(match[1])
    return rows


def bounded_kernels(root):
    """Names of the kernels whose definition has __launch_bounds__."""
    names = set()
    for path in [*root.glob("layers/*.cu"), *root.glob("layers/cuda/*.cuh")]:
        names |= {name for bounds, name in KERNEL.findall(path.read_text(encoding="utf-8")) if bounds}
    return names


def allowed_spills(path, findings):
    """{(kernel, arch): bytes}: rows of "KERNEL ARCH BYTES REASON"."""
    allowed = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split("#", 1)[0].split(None, 3)
        if words and (len(words) < 4 or not words[2].isdigit()):
            findings.append(f"{path.name}:{number}: a row is: KERNEL ARCH BYTES REASON")
        elif words:
            allowed[words[0], words[1]] = int(words[2])
    return allowed


def check(rows, bounded, allowed, findings):
    spilled = defaultdict(int)
    for row in rows:
        key = row["kernel"], row["arch"]
        spilled[key] = max(spilled[key], row["spilled"])
        if row["registers"] > REGISTERS_OF_1024 and row["kernel"] not in bounded:
            findings.append(
                f'{row["file"]}: {row["kernel"]} takes {row["registers"]} registers on {row["arch"]} and has no '
                f"__launch_bounds__: a block of 1024 threads could not be launched"
            )
    for (kernel, arch), spills in sorted(spilled.items()):
        limit = allowed.pop((kernel, arch), 0)
        if spills > limit:
            findings.append(f"{kernel} spills {spills} bytes on {arch} ({limit} allowed): use fewer registers")
        elif spills < limit:
            findings.append(f"{kernel} spills {spills} bytes on {arch}: write that instead of {limit}, or remove the row")
    findings += [f"allow_spills.txt: no kernel {kernel} for {arch}: remove the row" for kernel, arch in allowed]


def table(rows):
    """Lines of a Markdown table: the worst instance of each kernel."""
    archs = sorted({row["arch"] for row in rows}, key=lambda arch: int(re.search(r"\d+", arch)[0]))
    groups = defaultdict(list)
    for row in rows:
        groups[row["file"], row["kernel"]].append(row)
    yield "| kernel | instances | shared bytes | registers on " + " / ".join(archs) + " | spilled bytes |"
    yield "|---|---|---|---|---|"
    for (_, kernel), group in sorted(groups.items()):
        of = {arch: [row for row in group if row["arch"] == arch] for arch in archs}
        registers = " / ".join(str(max((row["registers"] for row in of[a]), default=0)) for a in archs)
        spilled = " / ".join(str(max((row["spilled"] for row in of[a]), default=0)) for a in archs)
        shared = max(row["shared"] for row in group)
        yield f"| {kernel} | {len({row['entry'] for row in group})} | {shared} | {registers} | {spilled} |"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--build", type=Path)
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    folder = (args.build or args.root / "build") / "layers" / "libmegac_kernels.so.p"
    rows, findings = [], []
    for source in sorted(args.root.glob("layers/*_cuda.cu")):
        report = folder / f"{source.name}.o.ptxas"
        found = parse(report.read_text(encoding="utf-8")) if report.is_file() else []
        if not found:
            findings.append(f"{source.name}: no report of ptxas in {report}")
        rows += [{"file": source.name, **row} for row in found]
    names = demangle(sorted({row["entry"] for row in rows})) if rows else {}
    for row in rows:
        row["kernel"] = base_name(names[row["entry"]])
    allow = Path(__file__).parent / "allow_spills.txt"
    check(rows, bounded_kernels(args.root), allowed_spills(allow, findings), findings)
    print("\n".join(table(rows)))
    if not args.markdown:
        print("\n".join(findings))
        print(f"ptxas_report: {len(rows)} kernels, {len(findings)} findings")
    return 1 if findings or not rows else 0


if __name__ == "__main__":
    sys.exit(main())

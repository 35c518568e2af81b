"""Every header compiles alone and twice over, as C11 and as C++17, with each compiler present, without a warning."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from lintlib import Check, blank_c, missing_tool, unit_of

LANGUAGES = {
    "C11": (["gcc", "clang"], ["-x", "c", "-std=c11", "-Wstrict-prototypes"]),
    "C++17": (["g++", "clang++"], ["-x", "c++", "-std=c++17"]),
}
COMMON = ["-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wshadow", "-Wno-unused-function", "-Wno-missing-field-initializers",
          "-Werror", "-fsyntax-only"]

# Headers of kernels of one instruction set: C only, never included by .cu files, compiled here for the plainest set.
KERNELS = ("layers/cpu/", ["-DLY_ISA=base"])

# Ending of a header that includes a vendor's -> pkg-config's name of the vendor's.
PACKAGES = {"_mpi.h": "ompi-c", "_hdf5.h": "hdf5"}
CUDA_ENDINGS = ("_cuda.h", "_cudnn.h")


def cuda_include():
    """The toolkit's folder of headers, where there is a toolkit (meson.build looks in the same places)."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    folder = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(nvcc))), "include")
    return folder if os.path.isfile(os.path.join(folder, "cuda_runtime_api.h")) else None


def vendor_flags(header):
    """Where the vendor's headers lie, as system headers: their warnings are not ours."""
    if header.endswith(CUDA_ENDINGS):
        return ["-isystem", cuda_include()]
    package = next((p for ending, p in PACKAGES.items() if header.endswith(ending)), None)
    if not package:
        return []
    done = subprocess.run(["pkg-config", "--cflags-only-I", package], capture_output=True, text=True)
    return [word.replace("-I", "-isystem", 1) for word in done.stdout.split()]


def compile_header(root, header, compiler, flags):
    """The first error, or None."""
    program = f'#include "{header}"\n#include "{header}"\n'
    command = [compiler, *flags, *COMMON, "-I", str(root), *vendor_flags(header), "-"]
    done = subprocess.run(command, input=program, capture_output=True, text=True, cwd=root)
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if "error:" in line] or done.stderr.splitlines()
    return errors[0] if errors else f"exit status {done.returncode}"


def check_text(check, header):
    """Things a compiler does not say."""
    text = check.read(header)
    guard = re.sub(r"\W", "_", header).upper()
    if f"#ifndef {guard}\n#define {guard}\n" not in text:
        check.find(header, 0, f"needs the include guard {guard}")
    declares = re.search(r"^(?!static\b|typedef\b)\w[\w \t*]*\b\w+\([^;{]*\)[^;{]*;", blank_c(text), re.MULTILINE)
    if declares and unit_of(header) and 'extern "C" {' not in text:
        check.find(header, 0, 'declares functions without extern "C" for C++')


def main(argv=None):
    check = Check("check_headers", argv)
    jobs = []
    for language, (compilers, flags) in LANGUAGES.items():
        present = [c for c in compilers if shutil.which(c)]
        if not present:
            missing_tool(check, " or ".join(compilers))
        jobs += [(language, compiler, flags) for compiler in present]
    headers = [h for h in check.files(".h") if unit_of(h)]
    if not cuda_include():
        for header in [h for h in headers if h.endswith(CUDA_ENDINGS)]:
            print(f"{header}: not compiled, no CUDA toolkit here")
            headers.remove(header)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for header in headers:
            check.examined += 1
            check_text(check, header)
            kernel = header.startswith(KERNELS[0])
            mine = [j for j in jobs if j[0] == "C11" or not kernel]
            extra = KERNELS[1] if kernel else []
            results = pool.map(lambda job, h=header, x=extra: compile_header(check.root, h, job[1], job[2] + x), mine)
            for (language, compiler, _), error in zip(mine, results):
                if error:
                    check.find(header, 0, f"does not compile alone as {language} with {compiler}: {error}")
    return check.finish(f"headers with {len(jobs)} compilers")


if __name__ == "__main__":
    sys.exit(main())

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


def compile_header(root, header, compiler, flags):
    """The first error, or None."""
    program = f'#include "{header}"\n#include "{header}"\n'
    command = [compiler, *flags, *COMMON, "-I", str(root), "-"]
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
    declares = re.search(r"^[\w \t*]+\b\w+\([^;{]*\)[^;{]*;", blank_c(text), re.MULTILINE)
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
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for header in headers:
            check.examined += 1
            check_text(check, header)
            results = pool.map(lambda job, h=header: compile_header(check.root, h, job[1], job[2]), jobs)
            for (language, compiler, _), error in zip(jobs, results):
                if error:
                    check.find(header, 0, f"does not compile alone as {language} with {compiler}: {error}")
    return check.finish(f"headers with {len(jobs)} compilers")


if __name__ == "__main__":
    sys.exit(main())

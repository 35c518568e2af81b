"""Include lines: who may include whom, and where headers of vendors and of one processor may stand."""

import re
import sys

from lintlib import UNITS, Check, blank_c, unit_of

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)

# Libraries with a plain C interface that any file may use.
LIBRARIES = {"jansson.h", "xxhash.h", "yaml.h", "zlib.h", "zstd.h"}

# C11, POSIX and Linux.
SYSTEM = set(
    """assert.h complex.h ctype.h errno.h fenv.h float.h inttypes.h iso646.h limits.h locale.h math.h setjmp.h signal.h
    stdalign.h stdarg.h stdatomic.h stdbool.h stddef.h stdint.h stdio.h stdlib.h stdnoreturn.h string.h tgmath.h threads.h
    time.h uchar.h wchar.h wctype.h
    arpa/inet.h dirent.h dlfcn.h endian.h execinfo.h fcntl.h fnmatch.h getopt.h glob.h ifaddrs.h langinfo.h libgen.h malloc.h
    net/if.h netdb.h netinet/in.h netinet/tcp.h poll.h pthread.h pwd.h regex.h sched.h semaphore.h spawn.h strings.h
    syslog.h termios.h unistd.h""".split()
)
SYSTEM_FOLDERS = ("sys/", "linux/", "asm/")

# Host code over one of NVIDIA's other libraries takes streams of cudart too.
CUDA_FILES = (".cu", ".cuh", "_cuda.c", "_cuda.h", "_cublas.c", "_cudnn.c", "_cudnn.h", "_nccl.c", "_nccl.h")

# Vendor -> (its headers, endings of the files that may include them).
VENDORS = {
    "CUDA": (re.compile(r"^(cuda|curand|nvtx|nvToolsExt|cub/|cooperative_groups)"), CUDA_FILES),
    "cuBLAS": (re.compile(r"^cublas"), ("_cuda.c", "_cuda.h", "_cublas.c")),
    "cuDNN": (re.compile(r"^cudnn"), ("_cuda.c", "_cudnn.c", "_cudnn.h")),
    "NCCL": (re.compile(r"^nccl"), ("_nccl.c", "_nccl.h")),
    "MPI": (re.compile(r"^mpi(-ext)?\.h$"), ("_mpi.c", "_mpi.h")),
    "HDF5": (re.compile(r"^(hdf5|H5\w*)(_hl)?\.h$"), ("_hdf5.c", "_hdf5.h")),
    "oneDNN": (re.compile(r"^(oneapi/)?dnnl"), ("_dnnl.c", "_dnnl.h")),
}

# Headers of ours that include a vendor's: for files of the same vendor only.
VENDOR_HEADER = re.compile(r"_(cuda|cudnn|nccl|mpi|hdf5|dnnl)\.h$")

# Headers of one processor: in a file named for it, or under a guard.
PROCESSOR = re.compile(r"^(\w*intrin|cpuid|x86gprintrin|arm_neon|arm_sve)\.h$")
PROCESSOR_FILES = re.compile(r"_(sse\w*|avx\w*|amx|x86|neon|sve)(_impl)?\.[ch]$")
PROCESSOR_MACROS = re.compile(r"__(x86_64|i386|aarch64|ARM_NEON|ARM_FEATURE_SVE|SSE\w*|AVX\w*|AMX\w*)_?_?")


def guarded(text, offset):
    """Whether an #if that names a processor is open at `offset`."""
    stack = []
    for line in text[:offset].splitlines():
        word = line.strip().replace(" ", "")
        if word.startswith("#if"):
            stack.append(bool(PROCESSOR_MACROS.search(line)))
        elif word.startswith("#endif") and stack:
            stack.pop()
    return any(stack)


def shows_vendor(check, match):
    """Whether the header of ours that `match` found includes a vendor's."""
    if not match:
        return False
    text = blank_c(check.read(match.string), keep_strings=True)
    names = [name for _, name in INCLUDE.findall(text) if name]
    return any(headers.match(name) for name in names for headers, _ in VENDORS.values())


def may_show(vendor):
    """Endings of the files that may include our headers named *_vendor.h."""
    return CUDA_FILES if vendor == "cuda" else (f"_{vendor}.c", f"_{vendor}.h")


def check_own(check, path, line, unit, target):
    """An include of the project: "folder/file"."""
    owner = unit_of(target)
    if not (check.root / target).is_file():
        check.find(path, line, f'"{target}" is not in the tree; write the path from the root, or <...> for a library')
    elif owner is None:
        check.find(path, line, f'"{target}": nothing may include files outside {", ".join(UNITS)}')
    elif owner not in UNITS[unit][1]:
        check.find(path, line, f'{unit} may not include "{target}"; it may use: {", ".join(UNITS[unit][1])}')
    elif shows_vendor(check, suffix := VENDOR_HEADER.search(target)) and not path.endswith(may_show(suffix.group(1))):
        check.find(path, line, f'"{target}" shows headers of a vendor; include it from *_{suffix.group(1)}.c only')
    elif owner != unit and target.endswith("_impl.h"):
        check.find(path, line, f'"{target}" is private to {owner}')


def check_angle(check, path, line, name, is_guarded):
    """An include of the system or of a library: <name>."""
    if PROCESSOR.match(name):
        if not is_guarded and not PROCESSOR_FILES.search(path):
            check.find(path, line, f"<{name}> needs #if defined(__x86_64__) around it, or a file named for the processor")
        return
    for vendor, (headers, endings) in VENDORS.items():
        if headers.match(name):
            if not path.endswith(endings):
                check.find(path, line, f"<{name}> belongs in a file named *{' or *'.join(endings)} ({vendor})")
            return
    if name not in SYSTEM and name not in LIBRARIES and not name.startswith(SYSTEM_FOLDERS):
        check.find(path, line, f"<{name}> is neither of the system nor a listed library (tests/lint/check_deps.py)")


def main(argv=None):
    check = Check("check_deps", argv)
    for path in check.files(".c", ".h", ".cu", ".cuh", ".def"):
        unit = unit_of(path)
        if unit is None:
            if not path.startswith("tests/"):
                check.find(path, 0, f"C files live in {', '.join(UNITS)} or tests")
            continue
        check.examined += 1
        text = blank_c(check.read(path), keep_strings=True)
        for match in INCLUDE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            if match.group(1) is not None:
                check_own(check, path, line, unit, match.group(1))
            else:
                check_angle(check, path, line, match.group(2), guarded(text, match.start()))
    return check.finish()


if __name__ == "__main__":
    sys.exit(main())

"""Each check passes on a small clean tree, finds one planted fault of each kind, and fails when it has nothing to examine."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

HEADER = """/* Adds. */
#ifndef MEGAC_BASE_ADD_H
#define MEGAC_BASE_ADD_H

#ifdef __cplusplus
extern "C" {
#endif

int mc_add(int a, int b);

#ifdef __cplusplus
}
#endif
#endif
"""

SOURCE = """#include "megac/base/add.h"

#include <stdio.h>

static const char *const names[] = {"one", "two"};

int mc_add(int a, int b)
{
    printf("%s\\n", names[a & 1]);
    return a + b;
}
"""

NET_HEADER = HEADER.replace("ADD_H", "NET_MPI_H").replace("mc_add", "mc_net").replace("\n\n", "\n\n#include <mpi.h>\n\n", 1)

LAYER = """/* Uses the floor. */
#include "megac/base/add.h"

int ly_twice(int a);

int ly_twice(int a)
{
    return mc_add(a, a);
}
"""

SCRIPT = """#!/usr/bin/env bash
# Says hello.
set -eu
echo "hello"
"""


class Tree:
    """A small project, and the checks run on it."""

    def __init__(self, root):
        self.root = root

    def write(self, path, text):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def append(self, path, text):
        self.write(path, (self.root / path).read_text(encoding="utf-8") + text)

    def compile(self):
        entries = []
        for source in sorted(self.root.rglob("*.c")):
            output = source.with_suffix(".o")
            command = ["gcc", "-std=c11", "-fPIC", "-I", str(self.root), "-c", str(source), "-o", str(output)]
            command[1:1] = MPI
            subprocess.run(command, check=True)
            entries.append({"directory": str(self.root), "file": str(source), "output": str(output)})
        self.write("build/compile_commands.json", json.dumps(entries))

    def run(self, name):
        if name == "symbols":
            self.compile()
        command = [sys.executable, str(HERE / f"check_{name}.py"), "--root", str(self.root)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 77:
            pytest.skip(done.stdout.strip())
        assert not done.stderr, done.stderr
        return done.returncode, done.stdout


@pytest.fixture
def tree(tmp_path):
    made = Tree(tmp_path / "tree")
    made.write("megac/base/add.h", HEADER)
    made.write("megac/base/add.c", SOURCE)
    made.write("megac/base/net_mpi.h", NET_HEADER)
    made.write("megac/base/net_mpi.c", '#include "megac/base/net_mpi.h"\n')
    made.write("layers/twice.c", LAYER)
    made.write("launch/hello.sh", SCRIPT)
    made.write("tests/hello.py", '"""Says hello."""\n\n\ndef hello():\n    return "hello"\n')
    for folder in ("", "megac/", "megac/base/", "layers/", "launch/", "tests/"):
        made.write(folder + "README.md", "# Read me\n")
    shutil.copy(ROOT / ".clang-format", made.root)
    return made


MPI = subprocess.run(["pkg-config", "--cflags-only-I", "ompi-c"], capture_output=True, text=True).stdout.split()
CHECKS = ["deps", "symbols", "headers", "size", "format", "idioms"]


@pytest.mark.parametrize("name", CHECKS)
def test_clean_tree_passes(tree, name):
    status, output = tree.run(name)
    assert status == 0, output
    assert ", 0 findings" in output


@pytest.mark.parametrize("name", CHECKS)
def test_nothing_examined_fails(tmp_path, name):
    (tmp_path / "empty").mkdir()
    status, output = Tree(tmp_path / "empty").run(name)
    assert status == 1, output
    assert "examined no" in output


def body(lines):
    return "\nint mc_long(void);\n\nint mc_long(void)\n{\n" + "    ;\n" * (lines - 2) + "}\n"


def kernel(lines):
    head = "/* A kernel. */\nstatic __global__ void fill(float *x)\n{\n"
    return head + "    x[0] = 0;\n" * (lines - 2) + "}\n"


# (check, file, text appended or the whole file, words that the finding must hold)
FAULTS = [
    ("deps", "megac/base/add.c", '#include "layers/twice.h"\n', "is not in the tree"),
    ("deps", "megac/base/up.c", '/* Up. */\n#include "layers/README.md"\n', "megac/base may not include"),
    ("deps", "layers/side.c", '/* Side. */\n#include "tests/hello.py"\n', "nothing may include files outside"),
    ("deps", "megac/base/group.c", "/* Group. */\n#include <mpi.h>\n", "_mpi.c"),
    ("deps", "megac/base/file.c", "/* File. */\n#include <hdf5.h>\n", "_hdf5.c"),
    ("deps", "layers/gemm_mpi.c", "/* Gemm. */\n#include <dnnl.h>\n", "_dnnl.c"),
    ("deps", "layers/copy.c", "/* Copy. */\n#include <cuda_runtime_api.h>\n", "_cuda.c"),
    ("deps", "layers/wide.c", "/* Wide. */\n#include <immintrin.h>\n", "__x86_64__"),
    ("deps", "megac/base/plain.c", '/* Plain. */\n#include "megac/base/net_mpi.h"\n', "shows headers of a vendor"),
    ("deps", "layers/odd.c", "/* Odd. */\n#include <curl/curl.h>\n", "nor a listed library"),
    ("deps", "extra/new.c", "/* New. */\n", "C files live in"),
    ("symbols", "megac/base/add.c", "\nint add_more(int a)\n{\n    return a;\n}\n", "exports add_more"),
    ("symbols", "megac/base/add.c", "\nint ly_twice(int);\nint mc_up(int a)\n{\n    return ly_twice(a);\n}\n", "calls ly_twice"),
    ("symbols", "megac/base/add.c", "\nint mc_count;\n", "mutable state in mc_count"),
    ("symbols", "megac/base/add.c", "\nint mc_n(void)\n{\n    static int n = 3;\n    return n++;\n}\n", "mutable state in n"),
    ("symbols", "megac/base/add.c", "\n_Thread_local int mc_local;\n", "mutable state in mc_local"),
    ("symbols", "tests/lint/allow_symbols.txt", "megac/base/add.c names a reason\n", "remove the row"),
    ("headers", "megac/base/add.h", "#define MC_N sizeof(size_t\n#if MC_ODD(1)\n#endif\n", "does not compile alone as C11"),
    ("headers", "layers/alone.h", "#ifndef LAYERS_ALONE_H\n#define LAYERS_ALONE_H\n/* Needs stddef. */\nstatic inline size_t ly_n(void)\n{\n    return 1;\n}\n#endif\n", "does not compile alone"),
    ("headers", "layers/cxx.h", "#ifndef LAYERS_CXX_H\n#define LAYERS_CXX_H\nstruct ly_x {\n    int class;\n};\n#endif\n", "as C++17"),
    ("headers", "layers/open.h", "struct ly_y {\n    int a;\n};\n", "include guard LAYERS_OPEN_H"),
    ("headers", "layers/link.h", "#ifndef LAYERS_LINK_H\n#define LAYERS_LINK_H\nint ly_z(int a);\n#endif\n", 'without extern "C"'),
    ("size", "megac/base/add.c", body(61), "mc_long has 61 lines; the budget is 60"),
    ("size", "megac/base/add.c", body(121), "the hard stop is 120"),
    ("size", "megac/base/add.c", "\n" * 500, "the budget is 500"),
    ("size", "megac/base/add.c", "\n" * 800, "the hard stop is 800"),
    ("size", "layers/fill_cuda.cu", kernel(151), "the budget is 150"),
    ("size", "layers/fill_cuda.cu", kernel(201), "the hard stop is 200"),
    ("size", "tests/long.py", '"""Long."""\n\n\ndef f():\n' + "    pass\n" * 60, "f has 61 lines"),
    ("size", "tests/lint/allow_size.txt", "2026-01-02 megac/base/add.c 600 a reason\n", "remove the row"),
    ("size", "tests/lint/allow_size.txt", "someday megac/base/add.c 600 a reason\n", "YYYY-MM-DD"),
    ("size", "tests/lint/allow_size.txt", "2026-01-02 megac/base/add.c 600\n", "and a reason"),
    ("format", "megac/base/add.c", "\nint mc_x( int a );\n", "not formatted"),
    ("format", "tests/cuda/add.cpp", "/* Adds. */\nint add( int a );\n", "not formatted"),
    ("size", "tests/cuda/long.cpp", "/* Long. */\nnamespace n\n{\n\nvoid f()\n{\n" + "    g();\n" * 59 + "}\n} // namespace n\n",
     "f has 61 lines; the budget is 60"),
    ("idioms", "tests/cuda/headless.cpp", "int a;\n", "starts with a comment"),
    ("format", "tests/bad.py", "def f(:\n", "does not compile"),
    ("format", "launch/bad.sh", "#!/usr/bin/env bash\n# Bad.\nif true\n", "launch/bad.sh"),
    ("format", "launch/unquoted.sh", '#!/usr/bin/env bash\n# Deletes.\nrm -r $1\n', "SC2086"),
    ("format", "README.md", "text \n", "white space at the end"),
    ("format", "README.md", "text", "no newline"),
    ("format", "tests/tab.py", '"""Tab."""\nX = "\t"\n', "a tab"),
    ("idioms", "layers/twice.c", "\nvoid *ly_get(void)\n{\n    return malloc(3);\n}\n", "malloc(): use mc_alloc"),
    ("idioms", "layers/twice.c", "\nvoid ly_end(void)\n{\n    exit(1);\n}\n", "exit(): use a status"),
    ("idioms", "layers/twice.c", "\nvoid ly_s(char *a)\n{\n    strcpy(a, a);\n}\n", "strcpy(): use"),
    ("idioms", "layers/twice.c", "\nvoid ly_s(char *a)\n{\n    sprintf(a, a);\n}\n", "sprintf(): use"),
    ("idioms", "layers/twice.c", "\nint ly_l(void)\n{\n    goto undo_a;\nundo_a:\n    MC_TRY(f());\n    return 1;\n}\n", "MC_TRY after undo_a"),
    ("idioms", "layers/twice.c", "\nint ly_l(void)\n{\n    goto out;\nout:\n    return 1;\n}\n", "label out"),
    ("idioms", "layers/bare.c", "#include <stdio.h>\n", "starts with a comment"),
    ("idioms", "layers/bare.h", "#ifndef A\n#define A\n#endif\n", "starts with a comment"),
    ("idioms", "launch/bare.sh", "#!/usr/bin/env bash\nset -eu\n", "starts with a comment"),
    ("idioms", "tests/bare.py", "X = 1\n", "starts with a comment"),
    ("idioms", "extra/note.md", "# Extra\n", "does not belong at the top level"),
    ("idioms", "pipeline/meson.build", "# empty\n", "pipeline: has no README.md"),
    ("idioms", "README.md", "See /wo" + "rk/main/x.\n", "a path of one machine"),
    ("idioms", "launch/hello.sh", "cat /tm" + "p/x\n", "a path of one machine"),
    ("idioms", "layers/twice.c", "/* TO" + "DO: more. */\n", "unfinished work"),
    ("idioms", "tests/lint/allow_idioms.txt", "layers/twice.c malloc a reason\n", "remove the row"),
]


@pytest.mark.parametrize("name, path, text, words", FAULTS, ids=[f"{f[0]}-{i}" for i, f in enumerate(FAULTS)])
def test_planted_fault_is_found(tree, name, path, text, words):
    if (tree.root / path).is_file():
        tree.append(path, text)
    else:
        tree.write(path, text)
    status, output = tree.run(name)
    assert status == 1, output
    assert words in output


def test_missing_readme_is_found(tree):
    (tree.root / "layers/README.md").unlink()
    status, output = tree.run("idioms")
    assert status == 1 and "layers: has no README.md" in output


def test_allowed_state_passes(tree):
    tree.append("megac/base/add.c", "\nstatic int count;\n\nint mc_next(void)\n{\n    return count++;\n}\n")
    tree.write("tests/lint/allow_symbols.txt", "megac/base/add.c count a reason\n")
    status, output = tree.run("symbols")
    assert status == 0, output


@pytest.mark.parametrize("lines, words", [(70, ""), (69, "has grown"), (71, "has shrunk")])
def test_allowed_size_is_exact(tree, lines, words):
    tree.append("megac/base/add.c", body(70))
    tree.write("tests/lint/allow_size.txt", f"2026-01-02 megac/base/add.c:mc_long {lines} a reason\n")
    status, output = tree.run("size")
    assert status == (1 if words else 0), output
    assert words in output


def test_guarded_processor_header_passes(tree):
    guarded = "/* Wide. */\n#if defined(__x86_64__)\n#include <immintrin.h>\n#endif\n"
    tree.write("layers/wide.c", guarded)
    assert tree.run("deps")[0] == 0
    tree.write("layers/wide.c", guarded + "#include <cpuid.h>\n")
    status, output = tree.run("deps")
    assert status == 1 and "wide.c:5" in output

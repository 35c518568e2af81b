"""House rules that a text can show: forbidden calls, clean-up labels, file heads, READMEs, the top level, machine paths."""

import ast
import re
import sys

from lintlib import UNITS, Check, blank_c, unit_of

ALLOW = "allow_idioms.txt"

# Call -> what to use instead.
BANNED = {
    **dict.fromkeys(
        ["malloc", "calloc", "realloc", "free", "aligned_alloc", "posix_memalign", "strdup", "strndup", "asprintf"],
        "mc_alloc / mc_free (megac/base/alloc.h)",
    ),
    **dict.fromkeys(["exit", "_exit", "_Exit", "quick_exit", "abort"], "a status (MC_FAIL) or MC_ASSERT"),
    **dict.fromkeys(["setjmp", "longjmp", "sigsetjmp", "siglongjmp"], "a status (MC_FAIL)"),
    **dict.fromkeys(["strcpy", "strcat", "stpcpy", "sprintf", "vsprintf", "gets"], "snprintf or memcpy with a size"),
    **dict.fromkeys(["atoi", "atol", "atof", "strtok"], "a parser that sees errors (strtoll, strtod, strsep)"),
    **dict.fromkeys(["rand", "srand", "random", "drand48"], "mc_rng_bits (megac/base/rng.h)"),
    **dict.fromkeys(["alloca"], "an arena (megac/base/arena.h)"),
}
CALL = re.compile(r"(?<![\w.>])(" + "|".join(map(re.escape, BANNED)) + r")\s*\(")
LABEL = re.compile(r"^[ \t]*([A-Za-z_]\w*):(?!:)[ \t]*$", re.MULTILINE)
RETURNING = re.compile(r"\bMC_TRY(_GOTO)?\s*\(")

TOP_LEVEL = {
    ".ci", ".clang-format", ".editorconfig", ".gitattributes", ".github", ".gitignore", "LICENSE", "README.md", "datasets",
    "launch", "layers", "megac", "meson.build", "meson_options.txt", "pipeline", "tensor_parallel", "tests",
}

# Spelled in pieces, so that this file does not hold what it looks for.
UNFINISHED = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK", "not " + "implemented", "stu" + "b"]) + r")\b")
MACHINE_PATH = re.compile(r"(?<![\w.~}$)])/(work|farm|tmp|root|home/\w+)/")


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


def check_calls(check, path, text, allowed, used):
    for match in CALL.finditer(text):
        name = match.group(1)
        if (path, name) in allowed:
            used.add((path, name))
        else:
            check.find(path, line_of(text, match.start()), f"{name}(): use {BANNED[name]}")


def check_labels(check, path, text):
    for match in LABEL.finditer(text):
        line = line_of(text, match.start())
        if match.group(1) == "default":
            continue
        if not match.group(1).startswith("undo_"):
            check.find(path, line, f"label {match.group(1)}: a clean-up label is named undo_<what>")
            continue
        end = text.find("\n}", match.end())
        after = RETURNING.search(text, match.end(), end if end >= 0 else len(text))
        if after:
            line = line_of(text, after.start())
            check.find(path, line, f"{after.group().rstrip('( ')} after {match.group(1)}: only MC_KEEP_FIRST may stand there")


def has_head(path, text):
    """A file says what it is for in its first comment, or in its header: block_fwd.c may leave that to block.h."""
    if path.endswith(".py"):
        return not text.strip() or ast.get_docstring(ast.parse(text)) is not None
    if path.endswith((".sh", ".sbatch")):
        lines = text.splitlines()
        return bool(lines) and lines[0].startswith("#!") and any(re.match(r"# \w", line) for line in lines[1:8])
    if text.startswith(("/*", "//")):
        return True
    if re.search(r"^tests/.*/test_\w+\.c$", path):
        return True  # named for the file that it tests
    own = re.findall(r'^#include "([^"]+)\.h"$', text, re.MULTILINE)
    return path.endswith(".c") and any(path[: -len(".c")].startswith(header) for header in own)


def check_texts(check, allowed, used):
    for path in check.files():
        if path == "LICENSE" or path.startswith(".git") or not re.search(r"\.\w+$|/run$|meson\.build$", path):
            continue
        try:
            text = check.read(path)
        except UnicodeDecodeError:
            continue
        for pattern, what in ((UNFINISHED, "names unfinished work"), (MACHINE_PATH, "names a path of one machine")):
            for match in pattern.finditer(text):
                word = match.group().strip("/")
                if (path, word) in allowed:
                    used.add((path, word))
                else:
                    check.find(path, line_of(text, match.start()), f'"{match.group()}" {what}')


def check_folders(check):
    paths = check.files()
    for name in sorted({p.split("/")[0] for p in paths} - TOP_LEVEL):
        check.find(name, 0, "does not belong at the top level; put it in the folder of its subject")
    folders = {"megac", "launch", "tests", *UNITS}
    for folder in sorted(folders):
        if any(p.startswith(folder + "/") for p in paths) and f"{folder}/README.md" not in paths:
            check.find(folder, 0, "has no README.md")
    if paths and "README.md" not in paths:
        check.find("README.md", 0, "is missing")


def main(argv=None):
    check = Check("check_idioms", argv)
    allowed = {(words[0], words[1]): number for number, words in check.allowed(ALLOW, 2)}
    used = set()
    for path in check.files(".c", ".h", ".cpp", ".cu", ".cuh", ".def", ".py", ".sh", ".sbatch"):
        check.examined += 1
        text = check.read(path)
        if not has_head(path, text):
            check.find(path, 1, "starts with a comment that says what the file is for")
        if unit_of(path):
            code = blank_c(text)
            check_calls(check, path, code, allowed, used)
            check_labels(check, path, code)
    check_texts(check, allowed, used)
    check_folders(check)
    for (path, word), number in allowed.items():
        if (path, word) not in used:
            check.find(f"tests/lint/{ALLOW}", number, f"{path} has no {word}: remove the row")
    return check.finish()


if __name__ == "__main__":
    sys.exit(main())

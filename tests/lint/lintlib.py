"""What the checks of this folder share: the folders and their prefixes, the list of files, C text without comments, reports.

Every check is a program: `check_x.py [--root DIR] [--build DIR]`. It prints one finding a line (`path:line: what; remedy`)
and a last line that says how much it examined. Exit status: 0 clean, 1 findings or nothing examined, 77 a tool it needs is
missing.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

# Folder -> (symbol prefix, folders whose headers and symbols it may use). DESIGN's table of who may call whom.
UNITS = {
    "megac/base": ("mc_", ["megac/base"]),
    "layers": ("ly_", ["layers", "megac/base"]),
    "tensor_parallel": ("tp_", ["tensor_parallel", "layers", "megac/base"]),
    "pipeline": ("pp_", ["pipeline", "megac/base"]),
    "datasets": ("ds_", ["datasets", "megac/base"]),
    "megac/train": (
        "mt_",
        ["megac/train", "tensor_parallel", "pipeline", "datasets", "layers", "megac/base"],
    ),
}

SKIPPED_FOLDERS = re.compile(r"^(build.*|__pycache__|\.git|\.venv|\.cache|.*\.egg-info)$")


def unit_of(path):
    """The folder of UNITS that a path (relative, with /) lies in, or None."""
    for unit in UNITS:
        if path.startswith(unit + "/"):
            return unit
    return None


class Check:
    """Command line, file list and report of one check."""

    def __init__(self, name, argv=None):
        parser = argparse.ArgumentParser(prog=name)
        parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2])
        parser.add_argument("--build", type=Path, help="build folder (default: ROOT/build)")
        args = parser.parse_args(argv)
        self.name = name
        self.root = args.root.resolve()
        self.build = (args.build or self.root / "build").resolve()
        self.examined = 0
        self.findings = []

    def find(self, path, line, text):
        self.findings.append(f"{path}:{line}: {text}" if line else f"{path}: {text}")

    def files(self, *suffixes):
        """Paths (relative, with /) of the project's own files; all of them without suffixes."""
        listed = self._from_git()
        names = self._from_walk() if listed is None else listed
        return sorted(n for n in names if not suffixes or n.endswith(suffixes))

    def _from_git(self):
        if not (self.root / ".git").exists():
            return None
        command = ["git", "-C", str(self.root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        try:
            done = subprocess.run(command, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None  # no git, or a checkout that belongs to someone else
        names = set(os.fsdecode(done.stdout).split("\0")) - {""}
        return [n for n in names if (self.root / n).is_file()]

    def _from_walk(self):
        found = []
        for folder, subfolders, names in os.walk(self.root):
            subfolders[:] = [
                s
                for s in subfolders
                if not SKIPPED_FOLDERS.match(s) and not (Path(folder) / s / "meson-private").is_dir()
            ]
            found += [os.path.relpath(os.path.join(folder, n), self.root).replace(os.sep, "/") for n in names]
        return found

    def read(self, path):
        return (self.root / path).read_text(encoding="utf-8")

    def allowed(self, name, columns):
        """Rows of an allow-list beside this file in the tree under check: `columns` words, then a reason; # comments."""
        path = f"tests/lint/{name}"
        rows = []
        if not (self.root / path).is_file():
            return rows
        for number, line in enumerate(self.read(path).splitlines(), 1):
            words = line.split("#", 1)[0].split(None, columns)
            if not words:
                continue
            if len(words) <= columns:
                self.find(path, number, f"a row needs {columns} columns and a reason")
                continue
            rows.append((number, words))
        return rows

    def finish(self, what="files"):
        for text in self.findings:
            print(text)
        if self.examined == 0:
            print(f"{self.name}: examined no {what}: the check looked in the wrong place")
        print(f"{self.name}: {self.examined} {what}, {len(self.findings)} findings")
        return 1 if self.findings or self.examined == 0 else 0


def missing_tool(check, tool):
    print(f"{check.name}: {tool} is not installed; not run")
    sys.exit(77)


C_TOKEN = re.compile(
    r"""(?P<comment>/\*.*?\*/|//[^\n]*)|(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')""",
    re.DOTALL,
)


def blank_c(source, keep_strings=False):
    """C text with comments (and strings) replaced by blanks, so that line numbers and columns stay."""

    def blank(match):
        if match.group("text") is not None:
            return match.group() if keep_strings else '"' + " " * (len(match.group()) - 2) + '"'
        return re.sub(r"[^\n]", " ", match.group())

    return C_TOKEN.sub(blank, source)


NOT_FUNCTION = re.compile(r"(namespace|class|struct|union)\b[^(]*$")
FUNCTION_NAME = re.compile(r"(\w+)\s*\((?:[^()]|\([^()]*\))*\)[^()]*$", re.DOTALL)


def c_functions(source):
    """(name, line of the opening brace, line of the closing one, head text) of each function.

    The formatter puts the braces of functions, namespaces and classes, and no others, alone in column 0.
    """
    lines = blank_c(source).splitlines()
    opened, head = None, []
    for number, line in enumerate(lines, 1):
        if opened is None and line.rstrip() == "{":
            if NOT_FUNCTION.match("".join(head)):
                head = []
            else:
                opened = number
        elif opened is not None and line.startswith("}"):
            text = "\n".join(head)
            match = FUNCTION_NAME.search(text)
            yield (match.group(1) if match else "?", opened, number, text)
            opened, head = None, []
        elif opened is None:
            ends_head = not line.strip() or line.startswith(("#", "}")) or line.rstrip().endswith((";", "*/"))
            head = [] if ends_head else head + [line]

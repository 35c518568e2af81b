"""Form: C by clang-format 14, Python compiles, shell scripts pass bash and shellcheck, and .editorconfig's rules hold."""

import re
import shutil
import subprocess
import sys

from lintlib import Check, missing_tool

TEXT = (".c", ".h", ".cpp", ".cu", ".cuh", ".def", ".py", ".sh", ".md", ".txt", ".yml", ".yaml", ".supp", ".sbatch", "meson.build")
LINE_LENGTH = 120


def clang_format():
    """A clang-format of version 14: others lay out some lines differently."""
    for name in ("clang-format-14", "clang-format"):
        if shutil.which(name):
            version = subprocess.run([name, "--version"], capture_output=True, text=True).stdout
            if re.search(r"version 14\.", version):
                return name
    return None


def check_c(check, tool):
    for path in check.files(".c", ".h", ".cpp", ".cu", ".cuh"):
        check.examined += 1
        command = [tool, "--style=file", "--dry-run", "-Werror", str(check.root / path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=check.root)
        if done.returncode:
            match = re.search(r":(\d+):\d+: error", done.stderr)
            check.find(path, match.group(1) if match else 0, f"not formatted; run {tool} -i {path}")


def check_python(check):
    for path in check.files(".py"):
        check.examined += 1
        try:
            compile(check.read(path), path, "exec")
        except SyntaxError as error:
            check.find(path, error.lineno, f"does not compile: {error.msg}")


def shell_scripts(check):
    for path in check.files():
        if path.endswith((".sh", ".sbatch")) or path == ".ci/run":
            yield path


def check_shell(check):
    tool = shutil.which("shellcheck")
    if not tool:
        missing_tool(check, "shellcheck")
    for path in shell_scripts(check):
        check.examined += 1
        for command in (["bash", "-n", path], [tool, "-x", "-f", "gcc", path]):
            done = subprocess.run(command, capture_output=True, text=True, cwd=check.root)
            if done.returncode:
                said = (done.stdout + done.stderr).strip().splitlines()
                check.find(path, 0, said[0] if said else f"{command[0]} exits with {done.returncode}")


def check_text(check):
    for path in check.files():
        if not path.endswith(TEXT):
            continue
        check.examined += 1
        text = check.read(path)
        if text and not text.endswith("\n"):
            check.find(path, 0, "the last line has no newline")
        for number, line in enumerate(text.split("\n"), 1):
            if line != line.rstrip():
                check.find(path, number, "white space at the end of the line")
            if "\t" in line:
                check.find(path, number, "a tab; indent with spaces")
            if len(line) > LINE_LENGTH and not path.endswith((".md", ".txt", ".py", ".def")):
                check.find(path, number, f"{len(line)} columns; at most {LINE_LENGTH}")


def main(argv=None):
    check = Check("check_format", argv)
    tool = clang_format()
    if not tool:
        missing_tool(check, "clang-format 14")
    check_c(check, tool)
    check_python(check)
    check_shell(check)
    check_text(check)
    return check.finish("checks of files")


if __name__ == "__main__":
    sys.exit(main())

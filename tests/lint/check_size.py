"""Sizes: files, functions and kernels within their budgets; what is over has a dated row in allow_size.txt that may only shrink."""

import ast
import re
import sys

from lintlib import Check, c_functions

# (budget, hard stop) in lines. A function's lines are those between its braces, both included.
FILE, FUNCTION, KERNEL = (500, 800), (60, 120), (150, 200)
ALLOW = "allow_size.txt"


def c_parts(path, text):
    for name, first, last, head in c_functions(text):
        kernel = "__global__" in head and path.endswith((".cu", ".cuh"))
        yield name, last - first + 1, KERNEL if kernel else FUNCTION, first


def python_parts(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node.end_lineno - node.lineno + 1, FUNCTION, node.lineno


def measure(check):
    """{subject: (lines, limits, path, line)} of every file and function."""
    sizes = {}
    for path in check.files(".c", ".h", ".cpp", ".cu", ".cuh", ".py", ".sh"):
        check.examined += 1
        text = check.read(path)
        sizes[path] = (text.count("\n"), FILE, path, 0)
        parts = python_parts(text) if path.endswith(".py") else [] if path.endswith(".sh") else c_parts(path, text)
        for name, lines, limits, line in parts:
            subject = f"{path}:{name}"
            if subject not in sizes or sizes[subject][0] < lines:
                sizes[subject] = (lines, limits, path, line)
    return sizes


def main(argv=None):
    check = Check("check_size", argv)
    sizes = measure(check)
    allowed = {}
    for number, (date, subject, lines, _) in check.allowed(ALLOW, 3):
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", date) or not lines.isdigit():
            check.find(f"tests/lint/{ALLOW}", number, "a row is: YYYY-MM-DD path[:function] lines reason")
            continue
        allowed[subject] = int(lines)
        seen = sizes.get(subject, (0, FILE))
        if seen[0] <= seen[1][0]:
            check.find(f"tests/lint/{ALLOW}", number, f"{subject} is within its budget or gone: remove the row")
        elif seen[0] < int(lines):
            check.find(f"tests/lint/{ALLOW}", number, f"{subject} has shrunk to {seen[0]} lines: write {seen[0]}")
        elif seen[0] > int(lines):
            check.find(f"tests/lint/{ALLOW}", number, f"{subject} has grown from {lines} to {seen[0]} lines")
    for subject, (lines, (budget, hard), path, line) in sizes.items():
        if lines > hard:
            check.find(path, line, f"{subject} has {lines} lines; the hard stop is {hard}: split it")
        elif lines > budget and subject not in allowed:
            check.find(path, line, f"{subject} has {lines} lines; the budget is {budget}: split it")
    return check.finish()


if __name__ == "__main__":
    sys.exit(main())

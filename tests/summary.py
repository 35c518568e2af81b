"""Adds up the results of all suites: names what was skipped and what failed, then one line `N passed, N failed, N skipped`.

  summary.py [--meson LABEL=testlog.json]... [--junit LABEL=report.xml]... [--step LABEL=pass|fail]...

A suite whose report is missing, or that is empty, counts as one failure. Exit status 1 when something failed or nothing
passed.
"""

import argparse
import json
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

MESON = {"OK": "passed", "EXPECTEDFAIL": "passed", "SKIP": "skipped"}


def meson_results(path):
    """(name, "passed" | "failed" | "skipped") of meson's log: one JSON object a line."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            row = json.loads(line)
            yield row["name"], MESON.get(row["result"], "failed")


def junit_results(path):
    for case in xml.parse(path).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        result = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        why = next((child.get("message", "") for child in case if child.tag == "skipped"), "")
        name = f'{case.get("classname", "")}.{case.get("name")}'
        yield (f"{name}: {why.splitlines()[0]}" if why else name), result


def step_results(outcome):
    yield "build", "passed" if outcome == "pass" else "failed"


def collect(label, read, source):
    """All results of one suite, with the suite's name in front."""
    try:
        rows = list(read(source))
    except (OSError, ValueError, KeyError, xml.ParseError) as error:
        return [(f"{label}: no readable report ({error})", "failed")]
    return [(f"{label}: {name}", result) for name, result in rows] or [(f"{label}: ran nothing", "failed")]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in ("meson", "junit", "step"):
        parser.add_argument(f"--{kind}", action="append", default=[], metavar="LABEL=SOURCE")
    args = parser.parse_args(argv)
    results = []
    for kind, read in (("meson", meson_results), ("junit", junit_results), ("step", step_results)):
        for row in getattr(args, kind):
            label, _, source = row.partition("=")
            results += collect(label, read, source if kind == "step" else Path(source))
    counts = {kind: [name for name, result in results if result == kind] for kind in ("passed", "failed", "skipped")}
    for kind in ("skipped", "failed"):
        for name in counts[kind]:
            print(f"{kind}: {name}")
    # A build is a condition of the tests, not a test: it is counted only when it failed.
    passed = sum(not name.endswith(": build") for name in counts["passed"])
    print(f"{passed} passed, {len(counts['failed'])} failed, {len(counts['skipped'])} skipped")
    return 1 if counts["failed"] or passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())

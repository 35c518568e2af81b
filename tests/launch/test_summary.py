"""The last line of run.sh: what counts as passed, failed and skipped, and when the exit status is 1."""

import subprocess
import sys

import pytest

JUNIT = """<testsuites><testsuite>
<testcase classname="a" name="good"/>
<testcase classname="a" name="bad"><failure message="no"/></testcase>
<testcase classname="a" name="broken"><error message="no"/></testcase>
<testcase classname="a" name="left"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def summary(repo, tmp_path):
    def run(*arguments):
        command = [sys.executable, str(repo / "tests/summary.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert not done.stderr, done.stderr
        return done.returncode, done.stdout.splitlines()

    return run


def log(path, *results):
    path.write_text("".join(f'{{"name": "t{i}", "result": "{r}"}}\n' for i, r in enumerate(results)))


def test_all_suites_are_added(summary, tmp_path):
    log(tmp_path / "m.json", "OK", "OK", "SKIP", "EXPECTEDFAIL")
    (tmp_path / "j.xml").write_text(JUNIT)
    status, lines = summary("--meson", "release=m.json", "--junit", "python=j.xml")
    assert status == 1
    assert lines[-1] == "4 passed, 2 failed, 2 skipped"
    assert "skipped: release: t2" in lines and "skipped: python: a.left: no GPU" in lines
    assert "failed: python: a.bad" in lines and "failed: python: a.broken" in lines


@pytest.mark.parametrize("result", ["FAIL", "TIMEOUT", "ERROR", "UNEXPECTEDPASS", "INTERRUPT", "SOMETHING NEW"])
def test_every_other_result_is_a_failure(summary, tmp_path, result):
    log(tmp_path / "m.json", "OK", result)
    assert summary("--meson", "release=m.json") == (1, ["failed: release: t1", "1 passed, 1 failed, 0 skipped"])


def test_success(summary, tmp_path):
    log(tmp_path / "m.json", "OK", "SKIP")
    status, lines = summary("--meson", "release=m.json", "--step", "sanitizers=pass")
    assert status == 0 and lines[-1] == "1 passed, 0 failed, 1 skipped"


def test_nothing_run_is_a_failure(summary, tmp_path):
    assert summary() == (1, ["0 passed, 0 failed, 0 skipped"])
    log(tmp_path / "m.json")
    assert summary("--meson", "release=m.json")[1][-1] == "0 passed, 1 failed, 0 skipped"
    log(tmp_path / "m.json", "SKIP")
    assert summary("--meson", "release=m.json")[0] == 1


def test_missing_report_and_failed_build_are_failures(summary, tmp_path):
    (tmp_path / "torn.xml").write_text(JUNIT[:80])
    (tmp_path / "torn.json").write_text('{"name": "t')
    status, lines = summary("--junit", "python=torn.xml", "--meson", "a=torn.json", "--meson", "b=none.json", "--step", "c=fail")
    assert status == 1 and lines[-1] == "0 passed, 4 failed, 0 skipped"

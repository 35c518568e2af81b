"""Runs of the megac program for tests: start it on N ranks, read its metrics back."""
import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
MEGAC = pathlib.Path(os.environ.get("MEGAC_BUILD", ROOT / "build")) / "megac"

MPI_ENV = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
}


def on_ranks(line, ranks, timeout, before=()):
    """The command line that runs `line` (megac and its arguments, behind the words `before`) on so many ranks: under mpirun
    where there is one."""
    if ranks == 1:
        return [*before, *line]
    if before or shutil.which("mpirun"):
        return ["mpirun", "--timeout", str(timeout), "-n", str(ranks), *before, *line]
    return ["timeout", str(timeout), line[0], "launch", "-n", str(ranks), "--", *line[1:]]


def command(args, ranks=1):
    """The command line and environment that run megac on so many ranks."""
    return on_ranks([str(MEGAC), *map(str, args)], ranks, 120), {**os.environ, **MPI_ENV}


def run(args, ranks=1, expect=0, timeout=150, stdin=None):
    """Runs megac and returns the finished process; fails the test when its exit status is not the expected one."""
    line, env = command(args, ranks)
    done = subprocess.run(line, env=env, timeout=timeout, capture_output=True, text=True, input=stdin, errors="replace")
    assert done.returncode == expect, (
        f"exit status {done.returncode}, expected {expect}\n{' '.join(line)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done


def peak_bytes(args):
    """The largest resident set of megac on one rank."""
    line, env = command(args)
    # A process's peak counts what its parent held when it was started: a small parent, for pytest may hold gigabytes.
    parent = (
        "import os, sys; quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]; "
        "pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet); "
        "_, status, usage = os.wait4(pid, 0); print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", parent, *line], env=env, capture_output=True, text=True, timeout=60)
    code, peak_kib = map(int, done.stdout.split())
    assert code == 0, done.stderr
    return 1024 * peak_kib


def metrics(path):
    """All records of a metrics file."""
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def train(args, ranks, tmp_path, name="m"):
    """Trains and returns the step records (with lm_loss) and the evaluation records (with valid_loss)."""
    path = pathlib.Path(tmp_path) / f"{name}.jsonl"
    path.unlink(missing_ok=True)
    run(["train", *args, "--metrics-file", path, "--num-threads", 1], ranks)
    records = metrics(path)
    return [r for r in records if "lm_loss" in r], [r for r in records if "valid_loss" in r]

"""A rank that is stopped or stuck at a disk ends the job on every rank within the deadline, with a report that says which
rank it was, where it was, and what it did last. (Killed ranks: test_run.py and test_launch.py.)"""
import os
import pathlib
import re
import signal
import subprocess
import time

import pytest
from megac_runs import MEGAC, MPI_ENV, run

STUCK_DISK = MEGAC.parent / "tests/train/libstuck_disk.so"
DEADLINE_S = {"mpirun": 6, "launch": 3}  # ranks meet within it, too, and MPI_Init takes its time
# What a rank may take to end after its report, and a launcher to end the others.
END_S = 12
SHAPE = (
    "--num-layers 4 --hidden-size 32 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32 "
    "--micro-batch-size 1 --global-batch-size 8 --lr 1e-3 --lr-decay-style constant --num-threads 1 --eval-iters 0 "
    "--train-iters 100000000 --log-interval 1"
).split()
MOCK = ["--mock-data", "--vocab-size", "97"]
OTHERS = ("OMPI_", "PMIX_", "SLURM_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "MEGAC_NO", "MEGAC_MASTER")


class Job:
    """megac train on ranks of this machine, under mpirun or megac launch."""

    def __init__(self, launcher, ranks, flags, tmp_path, **env):
        self.deadline_s = DEADLINE_S[launcher]
        train = ["train", *SHAPE, *map(str, flags), "--distributed-timeout-minutes", str(self.deadline_s / 60)]
        line = {
            "mpirun": ["mpirun", "--timeout", "40", "-n", str(ranks), MEGAC, *train],
            "launch": ["timeout", "--foreground", "40", MEGAC, "launch", "-n", str(ranks), "--", *train],
        }[launcher]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(OTHERS)}
        self.said = tmp_path / "stderr"
        with open(self.said, "w") as stderr:
            self.process = subprocess.Popen(
                line, env={**clean, **MPI_ENV, **env}, stdout=subprocess.PIPE, stderr=stderr, text=True
            )

    def wait_for_step(self):
        """Reads on to the next step's line."""
        for line in self.process.stdout:
            if line.startswith("iteration"):
                return
        pytest.fail(self.said.read_text())

    def ranks(self):
        """Process of each rank: descendants of the launcher that have a rank's environment."""
        found, todo = {}, [self.process.pid]
        while todo:
            pid = todo.pop()
            children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            todo += [int(c) for c in children]
            words = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            rank = next((w for w in words if re.match(rb"(OMPI_COMM_WORLD_)?RANK=", w)), None)
            if rank and pid != self.process.pid:
                found[int(rank.split(b"=")[1])] = pid
        return found

    def end(self, pids, since):
        """The job ends in time with a failure and leaves no process; returns what it said."""
        try:
            self.process.communicate(timeout=60)
        finally:
            self.process.kill()
        seconds, said = time.monotonic() - since, self.said.read_text()
        assert self.process.returncode != 0 and seconds < self.deadline_s + END_S, (seconds, said)
        assert [pid for pid in pids if alive(pid)] == []
        assert said.count("watchdog: report of rank") == 1, said
        return said


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def operations(said, rank):
    """The last operations of a rank as the report lists them: at most six, oldest first, each with group, sequence
    number, size and step."""
    rows = re.findall(rf"watchdog: rank {rank} did: (.*)", said)
    assert 1 <= len(rows) <= 6
    ago = [float(re.search(r", begun ([0-9.]+) s ago, (?:took|under way)", row).group(1)) for row in rows]
    assert ago == sorted(ago, reverse=True)
    one = r"(tp|pp|dp|world|embedding) #\d+ \w+( (to|from) member \d)?, \d+ bytes \w+, step \d+, "
    assert any(re.match(one, row) for row in rows)
    return rows


def test_a_stopped_rank(tmp_path):
    """SIGSTOP in mid-training, under mpirun, with the signals of a run that saves."""
    flags = [*MOCK, "--tp", "2", "--pp", "2", "--save", tmp_path / "save"]
    job = Job("mpirun", 4, flags, tmp_path)
    job.wait_for_step()
    ranks = job.ranks()
    assert sorted(ranks) == [0, 1, 2, 3]
    os.kill(ranks[3], signal.SIGSTOP)
    said = job.end(ranks.values(), time.monotonic())
    assert re.search(r"error: \w+ of (tp|pp|dp|world) #\d+ \(\d+ bytes\) waited \d\.\d s for rank", said)
    assert re.search(r"watchdog: report of rank [012] at step \d+: rank 3 holds up the others", said)
    assert re.search(rf"watchdog: rank 3, process {ranks[3]} \(stopped\), step \d+: (computes|waits|reads data)", said)
    operations(said, 3)


def test_a_stuck_disk(tmp_path):
    """A rank hangs in a save, one of another job where it reads data: both at once, to wait for one deadline."""
    # Some 90 chunks: the first 50 reads are those at the start and of the first steps.
    (tmp_path / "text").write_text("\n".join(f"line {7919 * i % 10007} {i}" for i in range(320000)))
    run(["prepare", "--input", tmp_path / "text", "--output-prefix", tmp_path / "corpus", "--compress"])
    for name in ("save", "read"):
        (tmp_path / name).mkdir()
    jobs = {
        "save": Job(
            "launch", 2, [*MOCK, "--tp", "2", "--save", tmp_path / "save/ck", "--save-interval", "2"], tmp_path / "save",
            LD_PRELOAD=str(STUCK_DISK), STUCK_DISK="1:fsync:1:shard_00001",
        ),
        "read": Job(
            "launch", 2, ["--data-path", tmp_path / "corpus"], tmp_path / "read",
            LD_PRELOAD=str(STUCK_DISK), STUCK_DISK="1:pread:50:corpus.h5",
        ),
    }  # fmt: skip
    ranks = {}
    for name, job in jobs.items():
        job.wait_for_step()
        ranks[name] = list(job.ranks().values())
        assert len(ranks[name]) == 2
    started = time.monotonic()
    saves, reads = (jobs[name].end(ranks[name], started) for name in ("save", "read"))
    shard = r"saves iteration 2: \S*/ck/iter_0000002\.tmp/shard_00001_of_00002\.safetensors"
    assert "report of rank 0 at step 2: rank 1 holds up the others" in saves
    assert re.search(rf"watchdog: rank 1, process \d+ \(sleeps\), step 2: {shard}, for \d\.\d+ s", saves)
    assert re.match(rf"{shard}, step 2, begun [0-9.]+ s ago, under way", operations(saves, 1)[-1])
    assert re.search(r"report of rank 0 at step \d+: rank 1 holds up the others", reads)
    assert re.search(r"watchdog: rank 1, process \d+ \(sleeps\), step \d+: reads data, for \d\.\d+ s", reads)
    assert operations(reads, 1)[-1].startswith("reads data, ")

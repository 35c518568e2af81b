"""Ranks without MPI: megac launch, the meeting over TCP, builds that lack MPI and HDF5."""
import os
import pathlib
import signal
import socket
import subprocess
import time

import pytest
from megac_runs import MEGAC, metrics, run
from megac_runs import train as train_mpi

BARE = MEGAC.parent / "tests/train/megac_bare"
SHAPE = (
    "--num-layers 4 --hidden-size 32 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32 "
    "--micro-batch-size 1 --global-batch-size 12 --vocab-size 97 --train-iters 3 --lr 1e-3 --lr-decay-style constant "
    "--mock-data --num-threads 1"
).split()
FOREVER = [*SHAPE, "--train-iters", "100000000", "--log-interval", "1"]


def clean_environment(**more):
    """Nothing of a launcher that may have started this test."""
    ours = ("OMPI_", "PMIX_", "SLURM_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "MEGAC_NO", "MEGAC_MASTER")
    return {**{k: v for k, v in os.environ.items() if not k.startswith(ours)}, **more}


def start(args, program=MEGAC, **env):
    return subprocess.Popen(
        [program, *map(str, args)], env=clean_environment(**env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process, timeout=60):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def launch(ranks, args, program=MEGAC, **env):
    return finish(start(["launch", "-n", ranks, "--", *args], program, **env))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def steps_of(path):
    return [(r["lm_loss"], r["grad_norm"]) for r in metrics(path) if "lm_loss" in r]


@pytest.mark.parametrize(
    "ranks, layout, env",
    [
        (2, "--tp 2 --sequence-parallel", {}),
        (2, "--pp 2", {}),
        (2, "--dp 2", {}),
        (4, "--tp 2 --pp 2", {}),
        (4, "--tp 2 --dp 2", {"MEGAC_NO_SHM": "1"}),  # every byte over TCP
        (4, "--pp 2 --dp 2", {"MEGAC_NODE_RANKS": "2"}),  # as if on two machines
    ],
)
def test_the_same_bits_as_under_mpirun(ranks, layout, env, tmp_path):
    flags = [*SHAPE, *layout.split()]
    status, _, err = launch(ranks, ["train", *flags, "--metrics-file", tmp_path / "tcp.jsonl"], **env)
    assert status == 0, err
    want, _ = train_mpi(flags, ranks, tmp_path, "mpi")
    assert len(want) == 3
    assert steps_of(tmp_path / "tcp.jsonl") == [(s["lm_loss"], s["grad_norm"]) for s in want]


def test_two_machines(tmp_path):
    """One megac launch on each, here both on this one; the second starts first, and strangers call meanwhile."""
    port = free_port()
    flags = [*SHAPE, "--tp", "2", "--dp", "2", "--metrics-file", tmp_path / "m.jsonl"]
    common = ["--nnodes", 2, "--master-addr", "localhost", "--master-port", port, "--", "train", *flags]
    second = start(["launch", "-n", 2, "--node_rank", 1, *common])
    first = start(["launch", "-n", 2, "--node-rank", 0, *common])
    for words in (b"", b"GET / HTTP/1.1\r\n\r\n" + b"x" * 64):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as stranger:
                stranger.sendall(words)
        except OSError:
            pass  # before rank 0 listens, or after the ranks have met
    assert finish(first)[0] == 0 and finish(second)[0] == 0
    want, _ = train_mpi([*SHAPE, "--tp", "2", "--dp", "2"], 4, tmp_path, "mpi")
    assert steps_of(tmp_path / "m.jsonl") == [(s["lm_loss"], s["grad_norm"]) for s in want]


def by_hand(rank, size, port, flags=SHAPE, **env):
    return start(["train", *flags, "--dp", size, "--distributed-timeout-minutes", 1], RANK=str(rank),
                 WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), **env)


def test_torchrun_agent_keeps_the_masters_port():
    """Its store listens there, and says so to the ranks: they meet at the next port."""
    with socket.socket() as store:
        store.bind(("127.0.0.1", 0))
        store.listen()
        port = store.getsockname()[1]
        ranks = [by_hand(r, 2, port, TORCHELASTIC_USE_AGENT_STORE="True") for r in range(2)]
        assert [finish(r)[0] for r in ranks] == [0, 0]


def test_a_port_in_use_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        status, _, err = finish(by_hand(0, 2, port))
    assert status == 1 and f"cannot listen at MASTER_PORT {port}: Address already in use" in err


def test_two_ranks_of_one_number():
    port = free_port()
    ranks = [by_hand(r, 3, port) for r in (1, 1, 0)]
    ends = [finish(r) for r in ranks]
    assert "rank 1 of 3 came twice" in ends[2][2] and ends[2][0] == 2
    assert all("rank 0 at 127.0.0.1 port" in err and status == 1 for status, _, err in ends[:2])


def test_other_sizes():
    port = free_port()
    ranks = [by_hand(0, 2, port), by_hand(1, 4, port)]
    status, _, err = finish(ranks[0])
    assert status == 2 and "rank 1 of 4 came, and this is rank 0 of 2" in err
    assert finish(ranks[1])[0] == 1


@pytest.mark.parametrize(
    "env, says",
    [
        ({}, "MASTER_PORT is not set in the environment of rank 0 of 2"),
        ({"MASTER_PORT": "http"}, 'MASTER_PORT="http" in the environment is no port'),
        ({"MASTER_PORT": "70000"}, 'MASTER_PORT="70000"'),
        ({"MASTER_PORT": "29500", "MASTER_ADDR": "no-such-host.invalid"}, 'MASTER_ADDR="no-such-host.invalid"'),
        ({"MASTER_PORT": "29500", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "MASTER_ADDR is not set"),
    ],
)
def test_variables_that_are_missing_or_wrong(env, says):
    status, out, err = finish(start(["train", *SHAPE, "--dp", 2], RANK="0", WORLD_SIZE="2", **env))
    assert status == 2 and says in err and not out
    assert err.count("error:") == 1


@pytest.mark.parametrize(
    "args, says",
    [
        (["launch"], "-n (--nproc-per-node) is missing"),
        (["launch", "-n", "2"], "nothing to launch"),
        (["launch", "-n", "0", "--", "train"], "-n"),
        (["launch", "-n", "2", "--nnodes", "2", "--", "train"], "--master-addr is missing"),
        (["launch", "-n", "2", "--master-addr", "localhost", "--", "train"], "--master-port is missing"),
        (["launch", "-n", "2", "--nnodes", "2", "--node-rank", "2", "--", "train"], "--node-rank 2 of --nnodes 2"),
        (["launch", "-n", "2", "--program", "/no/such/program", "--"], "cannot start /no/such/program"),
    ],
)
def test_wrong_use_of_launch(args, says):
    status, out, err = finish(start(args))
    assert status == 2 and says in err and not out, err


def test_the_ranks_status_is_the_launchers(tmp_path):
    status, out, err = launch(2, ["train", *SHAPE, "--dp", 2, "--hidden-size", 33])
    assert status == 2 and err.count("error:") == 1 and not out, err
    status, _, err = launch(2, ["train", *SHAPE, "--dp", 2, "--exit-interval", 1, "--save", tmp_path, "--save-interval", 1])
    assert status == 75, err


def wait_for_first_step(process):
    for line in process.stdout:
        if line.startswith("iteration"):
            return
    pytest.fail(process.stderr.read())


def children_of(pid):
    return [int(p) for p in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_a_killed_rank_ends_the_others():
    job = start(["launch", "-n", 2, "--", "train", *FOREVER, "--dp", 2])
    wait_for_first_step(job)
    os.kill(children_of(job.pid)[1], signal.SIGKILL)
    status, _, err = finish(job, 20)
    assert status == 1 and "rank 1 was ended by signal 9" in err, err
    assert "rank 1 is gone" in err and "watchdog: rank 1 did: " in err, err


def test_a_closed_connection_tells_without_a_launcher():
    """As on another machine: no process number, no shared memory, nobody who ends this rank."""
    port = free_port()
    ranks = [by_hand(r, 2, port, FOREVER, MEGAC_NO_SHM="1") for r in range(2)]
    wait_for_first_step(ranks[0])
    ranks[1].kill()
    status, _, err = finish(ranks[0], 20)
    finish(ranks[1])
    assert status == 1 and "rank 1 is gone (its connection is closed)" in err, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_do_not_outlive_the_launcher(number):
    job = start(["launch", "-n", 2, "--", "train", *FOREVER, "--dp", 2])
    wait_for_first_step(job)
    ranks = children_of(job.pid)
    assert len(ranks) == 2
    job.send_signal(number)
    assert finish(job, 20)[0] != 0
    end = time.monotonic() + 10
    while not all(map(gone, ranks)) and time.monotonic() < end:
        time.sleep(0.05)
    assert all(map(gone, ranks))


def test_a_build_without_mpi_and_hdf5(tmp_path):
    libraries = subprocess.run(["ldd", BARE], capture_output=True, text=True, check=True).stdout
    assert "libjansson" in libraries and "libmpi" not in libraries and "libhdf5" not in libraries
    flags = [*SHAPE, "--pp", "2", "--dp", "2"]
    status, _, err = launch(4, ["train", *flags, "--metrics-file", tmp_path / "bare.jsonl"], BARE)
    assert status == 0, err
    want, _ = train_mpi(flags, 4, tmp_path, "mpi")
    assert steps_of(tmp_path / "bare.jsonl") == [(s["lm_loss"], s["grad_norm"]) for s in want]


def test_what_a_build_without_mpi_and_hdf5_refuses(tmp_path):
    no_mock = [f for f in SHAPE if f != "--mock-data"]
    status, _, err = finish(start(["train", *no_mock, "--data-path", tmp_path / "x"], BARE))
    assert status == 2 and "built without HDF5" in err and "--mock-data" in err and err.count("error:") == 1
    (tmp_path / "text.txt").write_text("In the beginning")
    prepare = ["prepare", "--input", tmp_path / "text.txt", "--output-prefix", tmp_path / "x"]
    status, _, err = finish(start(prepare, BARE))
    assert status == 2 and "built without HDF5" in err and [p.name for p in tmp_path.iterdir()] == ["text.txt"]
    status, _, err = finish(start(["inspect", tmp_path / "x.h5"], BARE))
    assert status == 2 and "built without HDF5" in err
    mpirun = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
    status, _, err = finish(start(["train", *SHAPE, "--dp", 2], BARE, **mpirun))
    assert status == 2 and "built without MPI" in err and "megac launch -n 2" in err


def test_nccl_is_for_cuda():
    status, _, err = launch(2, ["train", *SHAPE, "--dp", 2, "--device", "cpu", "--comm", "nccl"])
    assert status == 2 and "--comm nccl is for --device cuda" in err


def test_the_commands_help():
    assert "megac launch" in run(["--help"]).stdout
    assert "--nproc-per-node" in run(["launch", "--help"]).stdout

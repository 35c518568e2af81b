"""The launch scripts: they parse, refuse wrong arguments, and their dry runs show the command lines that the README promises."""

import os
import shlex
import shutil
import subprocess
import time

import pytest

SCRIPTS = ["launch/quickstart.sh", "launch/mpirun.sh", "launch/slurm.sbatch", "launch/install.sh", "launch/meson.sh",
           "launch/venv.sh", "launch/ompi_env.sh", "tests/run.sh", ".ci/run"]


def bash(repo, *line, env=None, cwd=None):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "SLURM_", "MEGAC"))}
    command = ["bash", str(repo / line[0]), *map(str, line[1:])]
    return subprocess.run(command, capture_output=True, text=True, env={**clean, **(env or {})}, cwd=cwd or repo, timeout=60)


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_parses(repo, script):
    assert subprocess.run(["bash", "-n", str(repo / script)]).returncode == 0
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", "-x", script], cwd=repo, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["launch/quickstart.sh", "launch/mpirun.sh", "tests/run.sh"])
def test_help(repo, script):
    done = bash(repo, script, "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: ")


WRONG = [
    ("launch/quickstart.sh", "--fast"),
    ("launch/quickstart.sh", "--iters", "many"),
    ("launch/quickstart.sh", "--iters"),
    ("launch/quickstart.sh", "--text", "no/such/file"),
    ("launch/quickstart.sh", "--dry-run", "--out", "launch"),
    ("launch/mpirun.sh", "train"),
    ("launch/mpirun.sh", "-n", "2"),
    ("launch/mpirun.sh", "-n", "two", "train"),
    ("launch/mpirun.sh", "-n", "2", "--threads", "0", "train"),
    ("launch/mpirun.sh", "-n", "2", "--hostfile", "no/such/file", "train"),
    ("launch/mpirun.sh", "-n", "2", "--oops", "train"),
    ("launch/slurm.sbatch",),
    ("tests/run.sh", "--oops"),
    ("tests/run.sh", "--suite"),
]


@pytest.mark.parametrize("line", WRONG, ids=[" ".join(w) for w in WRONG])
def test_wrong_arguments_exit_with_2(repo, line):
    done = bash(repo, *line)
    assert done.returncode == 2
    assert done.stderr


def commands(output):
    """The shown command lines, as words."""
    return [shlex.split(line[2:]) for line in output.splitlines() if line.startswith("+ ")]


def after(words, flag):
    return words[words.index(flag) + 1]


def test_quickstart_dry_run(repo, tmp_path):
    text = tmp_path / "some text.txt"
    text.write_text("Hello.\n\nWorld.\n")
    out = tmp_path / "out"
    done = bash(repo, "launch/quickstart.sh", "--dry-run", "--text", text.name, "--out", "out", "--iters", 30, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not out.exists()
    shown = {words[1] if words[0].endswith("megac") else words[0]: words for words in commands(done.stdout)}
    assert after(shown["prepare"], "--input") == str(text)
    assert after(shown["prepare"], "--output-prefix") == str(out / "text")
    train = shown["mpirun"]
    assert after(train, "-n") == "4" and "train" in train
    assert after(train, "--tensor-model-parallel-size") == "2" and after(train, "--pipeline-model-parallel-size") == "2"
    assert after(train, "--train-iters") == "30"
    # Four ranks on one GPU is what NCCL refuses: the demonstration is one of CPU ranks on any machine.
    assert all(after(shown[name], "--device") == "cpu" for name in ("mpirun", "eval", "generate"))
    assert after(train, "--save") == after(shown["eval"], "--load") == after(shown["generate"], "--load")
    assert after(train, "--data-path") == after(shown["eval"], "--data-path") == str(out / "text")
    assert after(shown["generate"], "--prompt") == "In the beginning"
    assert "bible-kjv" not in done.stdout


def test_quickstart_keeps_what_is_not_its_own(repo, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = bash(repo, "launch/quickstart.sh", "--dry-run", "--out", tmp_path)
    assert done.returncode == 2 and "not empty" in done.stderr


def test_mpirun_on_this_machine(repo):
    done = bash(repo, "launch/mpirun.sh", "-n", 4, "--threads", 2, "--dry-run", "train", "--tp", 2, env={"MEGAC": "/opt/m"})
    assert done.returncode == 0, done.stderr
    assert shlex.split(done.stdout) == ["mpirun", "-n", "4", "--bind-to", "none", "/opt/m", "train", "--tp", "2",
                                        "--num-threads", "2"]


def test_mpirun_on_hosts(repo, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=2\nb slots=2\n")
    done = bash(repo, "launch/mpirun.sh", "-n", 4, "--hostfile", hosts, "--ranks-per-node", 2, "--net", "10.0.0.0/24",
                "--limit", "24h", "--dry-run", "--", "train", "--prompt", "two words")
    words = shlex.split(done.stdout)
    assert words[:6] == ["timeout", "-k", "60", "24h", "mpirun", "-n"]
    assert after(words, "--hostfile") == str(hosts)
    assert after(words, "--map-by") == "ppr:2:node"
    assert after(words, "btl_tcp_if_include") == after(words, "oob_tcp_if_include") == "10.0.0.0/24"
    assert words[-2:] == ["--prompt", "two words"]


def test_mpirun_starts_the_ranks(repo, tmp_path):
    """For real, with a program in megac's place that says its rank and arguments; its exit status comes back."""
    if not shutil.which("mpirun"):
        pytest.skip("mpirun is not installed")
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho "rank $OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE: $*"\nexit 75\n')
    program.chmod(0o755)
    done = bash(repo, "launch/mpirun.sh", "-n", 3, "--", "train", "--lr", "1", env={"MEGAC": str(program)})
    assert done.returncode == 75
    said = sorted(line for line in done.stdout.splitlines() if line.startswith("rank "))
    assert said == [f"rank {i} of 3: train --lr 1" for i in range(3)]


def test_ompi_env_leaves_what_is_set(repo):
    command = f'. "{repo}/launch/ompi_env.sh"; echo "$OMPI_MCA_mpi_yield_when_idle $OMPI_MCA_hwloc_base_binding_policy"'
    env = {"PATH": os.environ["PATH"], "OMPI_MCA_mpi_yield_when_idle": "0"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["0", "none"]


def slurm(repo, tmp_path, status, end_in=3600, arguments=("train", "--lr", "1")):
    """Runs the batch script with srun and scontrol replaced by programs that write down how they were called."""
    calls = tmp_path / "calls"
    for name, code in (("srun", status), ("scontrol", 0)):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>"{calls}"\nexit {code}\n')
        program.chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "MEGAC": "/bin/true",
        "SLURM_JOB_ID": "42",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_JOB_END_TIME": str(int(time.time()) + end_in),
    }
    done = bash(repo, "launch/slurm.sbatch", *arguments, env=env)
    return done.returncode, calls.read_text().splitlines()


@pytest.mark.parametrize("status", [0, 1, 2, 137])
def test_slurm_returns_the_status(repo, tmp_path, status):
    code, calls = slurm(repo, tmp_path, status)
    assert code == status
    assert len(calls) == 1
    assert calls[0].startswith("srun --mpi=pmix --kill-on-bad-exit=1 -c 8 /bin/true train --lr 1 --num-threads 8")
    assert int(calls[0].split("--exit-duration-in-mins ")[1]) in (54, 55)


def test_slurm_requeues_after_an_early_stop(repo, tmp_path):
    code, calls = slurm(repo, tmp_path, 75)
    assert code == 0
    assert calls[1:] == ["scontrol requeue 42"]


def test_slurm_leaves_given_flags(repo, tmp_path):
    _, calls = slurm(repo, tmp_path, 0, arguments=("train", "--exit-duration-in-mins", "9", "--num-threads", "3"))
    assert calls[0].endswith("/bin/true train --exit-duration-in-mins 9 --num-threads 3")
    (tmp_path / "calls").unlink()
    _, calls = slurm(repo, tmp_path, 0, arguments=("eval",))
    assert calls[0].endswith("/bin/true eval --num-threads 8")


def test_install_takes_only_the_kinds_asked_for(repo, tmp_path):
    """With a package database in which everything is there but one, and an apt-get that writes down what it is told."""
    rows = [line.split() for line in (repo / "tests/packages.txt").read_text().splitlines() if line and line[0] != "#"]
    assert len(rows) == len({package for _, package in rows}) and {kind for kind, _ in rows} == {"build", "demo", "test"}
    database, calls = tmp_path / "database", tmp_path / "calls"
    database.write_text("".join(f"installed {p}\n" for _, p in rows if p not in ("libhdf5-dev", "shellcheck")))
    programs = {
        "dpkg-query": f'cat "{database}"',
        "apt-get": f'echo "$*" >>"{calls}"; case "$*" in *install*) echo "installed libhdf5-dev" >>"{database}" ;; esac',
        "sudo": 'shift; exec "$@"',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = bash(repo, "launch/install.sh", "build", "demo", env=env)
    assert done.returncode == 0, done.stderr
    told = calls.read_text().splitlines()
    assert told[0].endswith("update") and told[1].endswith("install --no-install-recommends libhdf5-dev")
    calls.unlink()
    assert bash(repo, "launch/install.sh", "build", "demo", env=env).returncode == 0
    assert not calls.exists()
    done = bash(repo, "launch/install.sh", "test", env=env)
    assert done.returncode == 1 and "still missing: shellcheck" in done.stderr

"""Runs of megac on the CUDA backend over the stand-ins for NVIDIA's libraries (standin/README.md), without a GPU."""
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/train"))
from megac_runs import MPI_ENV, metrics  # noqa: E402

BUILD = pathlib.Path(os.environ.get("MEGAC_BUILD", ROOT / "build"))
FOLDERS = [BUILD / "tests/cuda/standin", BUILD / "tests/cuda/kernels"]

RACE = BUILD / "tests/cuda/race"

needs_standins = pytest.mark.skipif(
    not (FOLDERS[0] / "libcudart.so.13").exists() or not (FOLDERS[1] / "libmegac_kernels.so").exists(),
    reason="the CUDA backend was not built: no CUDA toolkit",
)
needs_race_build = pytest.mark.skipif(
    not (RACE / "libmegac_cuda.so").exists(), reason="no build for the race detector: no CUDA toolkit, or sanitizers"
)


def run(args, ranks=1, expect=0, timeout=300, instrumented=False, plant=None, **settings):
    """megac over the stand-ins; `settings` are STANDIN_ variables by their lower-case names, or others by their own.
    instrumented: the build whose accesses the race detector sees; plant: a fault of race/planted.c."""
    folders = [FOLDERS[0], RACE if instrumented else FOLDERS[1]]
    line = [str((RACE if instrumented else BUILD) / "megac"), *map(str, args)]
    if plant:
        line = ["env", f"LD_PRELOAD={RACE / 'libplanted.so'}", f"PLANT={plant}", *line]
    if ranks > 1:
        line = ["mpirun", "--timeout", str(timeout), "-n", str(ranks), *line]
    env = {**os.environ, **MPI_ENV, "LD_LIBRARY_PATH": ":".join(map(str, folders)), "MC_GEMM_AUTOTUNE": "0"}
    if instrumented:
        settings = {"race": 1, **settings}
    for name, value in settings.items():
        env[name if name.isupper() else "STANDIN_" + name.upper()] = str(value)
    done = subprocess.run(line, env=env, timeout=timeout + 30, capture_output=True, text=True, errors="replace")
    assert expect is None or done.returncode == expect, (
        f"exit status {done.returncode}, expected {expect}\n{' '.join(line)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    return done


def train(flags, ranks, path, **settings):
    """(loss, gradient norm) of every step."""
    path.unlink(missing_ok=True)
    done = run(["train", *flags, "--num-threads", 1, "--metrics-file", path], ranks, **settings)
    assert "allocations after the first step" not in done.stderr, done.stderr
    return [(step["lm_loss"], step["grad_norm"]) for step in metrics(path) if "lm_loss" in step]

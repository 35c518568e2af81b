"""Runs of megac on the CUDA backend: over the stand-ins for NVIDIA's libraries (standin/README.md), without a GPU; or, with
MEGAC_CUDA_LIBS=nvidia in the environment (tests/gpu/run.sh), over NVIDIA's on a GPU."""
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/train"))
from megac_runs import MPI_ENV, metrics, on_ranks  # noqa: E402

BUILD = pathlib.Path(os.environ.get("MEGAC_BUILD", ROOT / "build"))
FOLDERS = [BUILD / "tests/cuda/standin", BUILD / "tests/cuda/kernels"]

NVIDIA = os.environ.get("MEGAC_CUDA_LIBS") == "nvidia"
GPUS = int(os.environ.get("MEGAC_GPUS", "1"))
# How streams are run. A GPU has its own way, twice: the same bits are wanted again.
POLICIES = ["once", "again"] if NVIDIA else ["late", "eager", "random:1"]
RACE = BUILD / "tests/cuda/race"

needs_standins = pytest.mark.skipif(
    not NVIDIA and (not (FOLDERS[0] / "libcudart.so.13").exists() or not (FOLDERS[1] / "libmegac_kernels.so").exists()),
    reason="the CUDA backend was not built: no CUDA toolkit",
)
standins_only = pytest.mark.skipif(NVIDIA, reason="asks something of the stand-ins that a GPU does not do")
needs_race_build = pytest.mark.skipif(
    not (RACE / "libmegac_cuda.so").exists(), reason="no build for the race detector: no CUDA toolkit, or sanitizers"
)


def run(args, ranks=1, expect=0, timeout=300, share=True, instrumented=False, plant=None, **settings):
    """megac on CUDA; `settings` are STANDIN_ variables by their lower-case names, or others by their own. More ranks than
    GPUs talk over their hosts, unless they may not `share` one: NCCL refuses that.
    instrumented: the build whose accesses the race detector sees; plant: a fault of race/planted.c."""
    args = [str(a) for a in args]
    env = {**os.environ, **MPI_ENV, "MC_GEMM_AUTOTUNE": "0"}
    if not NVIDIA:
        env["LD_LIBRARY_PATH"] = ":".join(map(str, [FOLDERS[0], RACE if instrumented else FOLDERS[1]]))
    elif ranks > GPUS and share and "--comm" not in args:
        args += ["--comm", "tcp"]
    planted = ["env", f"LD_PRELOAD={RACE / 'libplanted.so'}", f"PLANT={plant}"] if plant else []
    line = on_ranks([str((RACE if instrumented else BUILD) / "megac"), *args], ranks, timeout, planted)
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

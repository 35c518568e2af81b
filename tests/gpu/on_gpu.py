"""The test programs of the CUDA backend, one case each, on what tests/gpu/run.sh put on the loader's path; and those that
are short once more under compute-sanitizer. Not collected by itself: run.sh names this file."""
import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ["MEGAC_BUILD"])
STANDIN = os.environ.get("MEGAC_CUDA_LIBS") != "nvidia"
SANITIZER = shutil.which("compute-sanitizer")
FOUND = 86  # exit status of compute-sanitizer that found something

PROGRAMS = {
    "device": ["tests/cuda/test_device_cuda"],
    "gemm": ["tests/cuda/test_gemm_cuda"],
    "attention": ["tests/cuda/test_attention_cuda"],
    "operators": ["tests/layers/test_ops_reference", BUILD / "tests/layers/op_cases", "cuda"],
}
FOLDERS = ["tests/cuda/standin", "tests/cuda/kernels", ""] if STANDIN else ["", "layers"]


def run(name, before=(), **settings):
    program, *args = PROGRAMS[name]
    for needed in (BUILD / program, *args[:1]):
        if not needed.exists():
            pytest.skip(f"{needed} was not built (no cuDNN headers, or no JAX)")
    path = [str(BUILD / f) for f in FOLDERS] + os.environ.get("LD_LIBRARY_PATH", "").split(":")
    env = {**os.environ, "LD_LIBRARY_PATH": ":".join(p for p in path if p), "MC_GEMM_AUTOTUNE": "0", **settings}
    line = [*before, BUILD / program, *args]
    done = subprocess.run(list(map(str, line)), env=env, capture_output=True, text=True, timeout=500, errors="replace")
    if done.returncode == 77:
        pytest.skip((done.stdout + done.stderr).strip().splitlines()[-1])
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name):
    run(name)


def test_algorithms_of_products_chosen_by_time():
    run("gemm", MC_GEMM_AUTOTUNE="1")


def test_attention_by_our_kernels_alone():
    run("attention", MC_CUDNN="0")


@pytest.mark.skipif(SANITIZER is None, reason="no compute-sanitizer on the PATH")
@pytest.mark.parametrize("name", ["device", "operators"])
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_under_compute_sanitizer(tool, name):
    """Without cuDNN: what is looked at is ours, and NVIDIA's libraries are known to initcheck for padding that they read."""
    before = [SANITIZER, "--tool", tool, "--error-exitcode", str(FOUND), "--kernel-name-exclude", "regex=cutlass|cublas|gemm"]
    run(name, before, MC_CUDNN="0")

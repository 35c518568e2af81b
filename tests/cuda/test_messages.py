"""`megac train --device cuda` on machines where something is missing: exit status 2 and one line that says what and what
to do; and whatever needs no CUDA loads none of its libraries."""
import os
import shutil
import subprocess

import pytest

TRAIN = (
    "train --num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 16 --max-position-embeddings 16 "
    "--micro-batch-size 2 --global-batch-size 4 --lr 1e-3 --train-iters 2 --mock-data --vocab-size 64 --num-threads 1"
).split()


def run(program, *args, **environment):
    env = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"} | environment
    return subprocess.run([program, *args], env=env, capture_output=True, text=True, timeout=120, errors="replace")


def refused(done, *words):
    """Exit status 2, one line of error on standard error, all words in it."""
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1 and lines[0].startswith("megac: error: --device cuda: "), done.stderr
    for word in words:
        assert word in lines[0]


@pytest.fixture(scope="module")
def module(build_dir):
    """The built module, or a skip."""
    path = build_dir / "libmegac_cuda.so"
    if not path.is_file():
        pytest.skip(f"{path} is not built: no CUDA toolkit here")
    return path


@pytest.fixture(scope="module")
def standins(build_dir, module):
    """LD_LIBRARY_PATH of the stand-in libraries and the kernels of g++."""
    folders = [build_dir / "tests/cuda/standin", build_dir / "tests/cuda/kernels"]
    for name in ("libcudart.so.13", "libcublasLt.so.13", "libmegac_kernels.so"):
        assert any((f / name).is_file() for f in folders), f"{name} is not built"
    return ":".join(map(str, folders))


def test_no_module(megac, tmp_path):
    alone = shutil.copy(megac, tmp_path)
    refused(run(alone, *TRAIN, "--device", "cuda"), "libmegac_cuda.so", "no CUDA module", "--device cpu")


def test_missing_library(megac, module, tmp_path):
    for path in (megac, module):
        shutil.copy(path, tmp_path)
    refused(run(tmp_path / "megac", *TRAIN, "--device", "cuda"), "a library is missing", "libmegac_kernels.so",
            "LD_LIBRARY_PATH")


def test_damaged_module(megac, tmp_path):
    alone = shutil.copy(megac, tmp_path)
    (tmp_path / "libmegac_cuda.so").write_bytes(b"not a library")
    refused(run(alone, *TRAIN, "--device", "cuda"), "libmegac_cuda.so", "cannot be loaded", "build megac again")


def test_module_of_something_else(megac, build_dir, tmp_path, module):
    """A library without the table of devices."""
    alone = shutil.copy(megac, tmp_path)
    shutil.copy(build_dir / "tests/cuda/standin/libcudart.so.13", tmp_path / "libmegac_cuda.so")
    refused(run(alone, *TRAIN, "--device", "cuda"), "mc_device_cuda", "build megac again")


def test_no_driver_with_nvidias_libraries(megac, module):
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("this machine has an NVIDIA driver")
    refused(run(megac, *TRAIN, "--device", "cuda"), "no NVIDIA driver", "--device cpu")


@pytest.mark.parametrize(
    "setting, words",
    [
        ({"STANDIN_DRIVER": "none"}, ["no NVIDIA driver"]),
        ({"STANDIN_DRIVER": "old"}, ["driver is too old", "CUDA 12.2", "update the driver"]),
        ({"STANDIN_DEVICES": "0"}, ["no CUDA device is visible"]),
        ({"STANDIN_DEVICE": "v100"}, ["compute capability 7.0", "8.0"]),
    ],
    ids=["no driver", "old driver", "no device", "old device"],
)
def test_unusable(megac, standins, setting, words):
    refused(run(megac, *TRAIN, "--device", "cuda", LD_LIBRARY_PATH=standins, **setting), *words)


def opened(tmp_path, megac, *args, **environment):
    """What the loader says it opened while the program ran."""
    report = tmp_path / "opened"
    done = run(megac, *args, LD_DEBUG="files", LD_DEBUG_OUTPUT=str(report), **environment)
    assert done.returncode == 0, done.stderr
    text = "".join(p.read_text(errors="replace") for p in tmp_path.glob("opened.*"))
    assert "libc.so" in text
    return text


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], [*TRAIN, "--device", "auto"], [*TRAIN, "--device", "cpu"]],
                         ids=["help", "help of train", "auto", "cpu"])
def test_nothing_of_cuda_is_loaded(megac, tmp_path, args):
    """CUDA's libraries cost seconds and memory: only --device cuda, or a driver, loads them."""
    text = opened(tmp_path, megac, *args, MC_CUDA_DEVICE_FILE="/nonexistent")
    for name in ("libmegac_cuda", "libmegac_kernels", "libcudart", "libcublas", "libcudnn", "libnccl"):
        assert name not in text


def test_auto_says_why_a_driver_does_not_help(megac, standins):
    done = run(megac, *TRAIN, "--device", "auto", LD_LIBRARY_PATH=standins, MC_CUDA_DEVICE_FILE="/dev/null",
               STANDIN_DEVICE="v100")
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "warning" in line and "--device auto" in line]
    assert len(warnings) == 1 and "compute capability 7.0" in warnings[0]

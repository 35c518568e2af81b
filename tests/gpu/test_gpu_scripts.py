"""The scripts for a machine with a GPU, without one: over the stand-ins they find, count and measure what they should."""
import os
import re
import subprocess
import sys

import pytest

RUN, BENCH, PACK = "tests/gpu/run.sh", "tests/gpu/bench.sh", "tests/gpu/pack.sh"
# A word of a bench line for each operator of layers/ops.def.
LINE = re.compile(r"^(\w+) .* us +[0-9.]+ (TFLOP|GB)/s", re.M)


def script(repo, name, *args, path=None, **env):
    tools = os.path.dirname(sys.executable)  # the python3 that has pytest
    env = {**os.environ, "PATH": f"{path or ''}{':' if path else ''}{tools}:{os.environ['PATH']}", **env}
    return subprocess.run(
        ["bash", repo / name, *map(str, args)], env=env, capture_output=True, text=True, timeout=280, errors="replace"
    )


@pytest.fixture(scope="module")
def cuda_build(build_dir):
    if not (build_dir / "libmegac_cuda.so").is_file():
        pytest.skip("the CUDA backend was not built: no CUDA toolkit")
    return build_dir


def last(done):
    lines = done.stdout.strip().splitlines()
    return lines[-1] if lines else ""


def test_run_counts_what_it_ran(repo, cuda_build, tmp_path):
    """One program, and the same under a compute-sanitizer that runs its arguments; others are absent or filtered out."""
    fake = tmp_path / "compute-sanitizer"
    fake.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\nwhile [ "${{1#--}}" != "$1" ]; do shift 2; done\nexec "$@"\n')
    fake.chmod(0o755)
    args = ["--standin", "--no-build", "--build-dir", cuda_build, "-k", "device and not train"]
    done = script(repo, RUN, *args, path=str(tmp_path))
    assert done.returncode == 0 and last(done) == "5 passed, 0 failed, 0 skipped", done.stdout + done.stderr
    calls = (tmp_path / "calls").read_text()
    assert all(f"--tool {tool} " in calls for tool in ("memcheck", "racecheck", "synccheck", "initcheck"))
    assert calls.count("test_device_cuda") == 4


def test_run_reports_a_failure_and_names_what_it_skipped(repo, cuda_build):
    """A device that fails every third allocation."""
    args = ["--standin", "--no-build", "--build-dir", cuda_build, "-k", "device and not train"]
    done = script(repo, RUN, *args, STANDIN_FAIL="cudaMalloc:3")
    assert done.returncode == 1 and last(done) == "0 passed, 1 failed, 4 skipped", done.stdout + done.stderr
    assert "failed: gpu: " in done.stdout and "skipped: gpu: " in done.stdout and "no compute-sanitizer" in done.stdout


@pytest.mark.parametrize("name", [RUN, BENCH])
def test_wrong_use(repo, name, tmp_path):
    assert script(repo, name, "--frobnicate").returncode == 2
    assert "usage: " + name in script(repo, name, "--help").stdout
    done = script(repo, name, "--build-dir", tmp_path, *(["--no-build"] if name == RUN else []))
    assert done.returncode == 2 and "no GPU: nvidia-smi" in done.stderr
    done = script(repo, name, "--standin", "--build-dir", tmp_path, *(["--no-build"] if name == RUN else []))
    assert done.returncode == 2 and str(tmp_path) in done.stderr


def test_bench_measures_every_operator(repo, cuda_build):
    done = script(repo, BENCH, "--standin", "--build-dir", cuda_build)
    assert done.returncode == 0, done.stdout + done.stderr
    operators = re.findall(r"^LY_OP\((\w+)\)", (repo / "layers/ops.def").read_text(), re.M)
    assert len(operators) > 20 and set(operators) == {op for op, _ in LINE.findall(done.stdout)}
    assert done.stdout.count("attention_bwd tiny") == 2  # cuDNN's, ours
    assert re.search(r"^tiny bf16 .*tokens/s .* MFU", done.stdout, re.M) and re.search(r"^tiny tf32 ", done.stdout, re.M)
    assert "figures of the stand-ins, which mean nothing" in done.stdout and "MISUSE" not in done.stderr


def test_bench_of_one_operator(repo, cuda_build):
    done = script(repo, BENCH, "--standin", "--build-dir", cuda_build, "rope")
    assert {op for op, _ in LINE.findall(done.stdout)} == {"rope", "attention_fwd", "attention_bwd", "attention_decode"}
    assert "tokens/s" not in done.stdout


def test_pack_holds_what_a_build_needs(repo, tmp_path):
    """A program that uses all of them is compiled with that folder alone in front, and linked statically where it can be."""
    done = script(repo, PACK, tmp_path / "libs")
    assert done.returncode == 0, done.stderr
    program = tmp_path / "all.c"
    program.write_text(
        "#include <jansson.h>\n#include <xxhash.h>\n#include <yaml.h>\n#include <zlib.h>\n#include <zstd.h>\n"
        "int main(void)\n{\n    json_decref(json_object());\n    int a, b, c;\n    yaml_get_version(&a, &b, &c);\n"
        '    return !(XXH3_64bits("", 0) && zlibVersion()[0] == \'1\' && ZSTD_versionNumber() > 10000);\n}\n'
    )
    libs = tmp_path / "libs"
    link = ["-ljansson", "-lxxhash", "-lyaml", "-lz", "-lzstd"]
    subprocess.run(
        ["cc", "-nostdinc", *[f"-isystem{p}" for p in (libs / "include", *compiler_folders())], program, "-o",
         tmp_path / "all", *link],
        env={**os.environ, "LIBRARY_PATH": str(libs / "lib")}, check=True,
    )
    subprocess.run([tmp_path / "all"], check=True)
    needs = subprocess.run(["ldd", tmp_path / "all"], capture_output=True, text=True, check=True).stdout
    assert not any(f"lib{name}" in needs for name in ("jansson", "xxhash", "yaml", "zstd"))


def compiler_folders():
    """Where the compiler keeps its own headers and the C library's."""
    text = subprocess.run(["cc", "-E", "-v", "-x", "c", "/dev/null"], capture_output=True, text=True, check=True).stderr
    return [line.strip() for line in text.split("search starts here:\n")[-1].splitlines() if line.startswith(" /")]

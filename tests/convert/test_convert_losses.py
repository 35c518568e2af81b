"""What megac computes with a converted model against what transformers computed with the original (make_fixtures.py):
the loss of every token, through a checkpoint and straight from the directory, and the mean on other layouts."""

import json
import os
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
from convert_runs import FIXTURES, NAMES, ONE_OF_EACH, convert, run
from megac_runs import ROOT
from safetensors.numpy import load_file

LOSSES_TOOL = pathlib.Path(os.environ.get("MEGAC_BUILD", ROOT / "build")) / "tests/convert/losses_tool"
LENGTH = 24
FLAGS = ["--seq-length", LENGTH, "--micro-batch-size", 1, "--global-batch-size", 1, "--num-threads", 1]


def dataset(name, folder):
    """The fixture's tokens, which are ASCII, as a dataset."""
    expected = load_file(FIXTURES / f"{name}.expected.safetensors")
    (folder / "t.txt").write_bytes(expected["stream"].astype(np.uint8).tobytes())
    run(["prepare", "--input", folder / "t.txt", "--output-prefix", folder / "t"])
    return expected


def token_losses(model, data):
    """First tokens of each window -> losses."""
    line = [LOSSES_TOOL, "--load", model, "--data-path", data, *FLAGS]
    done = subprocess.run([*map(str, line)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    windows = {}
    for row in done.stdout.splitlines():
        tokens, losses = row.split(":")
        windows[tuple(map(int, tokens.split()))] = np.array(losses.split(), dtype=np.float64)
    return windows


def largest_error(name, windows, expected):
    """Of losses, which are differences of logits, relative to the largest logit."""
    tokens = expected["stream"][:-1].reshape(-1, LENGTH)
    assert len(windows) == len(tokens) == 12
    errors = [np.abs(windows[tuple(map(int, t))] - want) for t, want in zip(tokens, expected["losses"])]
    return np.max(errors) / np.abs(expected["logits"]).max()


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_transformers(name, tmp_path):
    expected = dataset(name, tmp_path)
    convert(FIXTURES / name, tmp_path / "megac")
    through = token_losses(tmp_path / "megac", tmp_path / "t")
    straight = token_losses(FIXTURES / name, tmp_path / "t")
    assert largest_error(name, through, expected) < 1e-5  # 1e-4 is asked for
    assert all(np.array_equal(through[k], straight[k]) for k in through) and through.keys() == straight.keys()


# A field that each fixture is there for, and another value of it.
CHANGES = [
    ("gpt2", {"layer_norm_epsilon": 1e-3}),
    ("llama2", {"rms_norm_eps": 1e-3}),
    ("llama3", {"rope_scaling": None}),
    ("llama3", {"rope_theta": 400000.0}),
    ("llama-biases", {"rope_scaling": None}),
    ("mistral", {"sliding_window": 8}),
    ("mistral", {"sliding_window": 6}),
]


@pytest.mark.parametrize("name, changes", CHANGES)
def test_the_check_would_see_it(name, changes, tmp_path):
    """The same weights under a slightly different config.json miss the mark by far."""
    expected = dataset(name, tmp_path)
    source = shutil.copytree(FIXTURES / name, tmp_path / "source")
    config = json.loads((source / "config.json").read_text()) | changes
    (source / "config.json").write_text(json.dumps(config))
    assert largest_error(name, token_losses(source, tmp_path / "t"), expected) > 1e-4


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_other_layouts(name, tmp_path):
    """Four ranks read their shares straight from the directory."""
    expected = dataset(name, tmp_path)
    args = ["eval", "--load", FIXTURES / name, "--data-path", tmp_path / "t", *FLAGS, "--tp", 2, "--pp", 2]
    loss = re.search(r"loss ([0-9.]+) ", run(args, ranks=4).stdout).group(1)
    assert float(loss) == pytest.approx(expected["losses"].mean(), abs=2e-5)

"""What megac computes with a converted model against what transformers computed with the original (make_fixtures.py):
the loss of every token, through a checkpoint and straight from the directory, on one rank and on four."""

import json
import shutil

import numpy as np
import pytest
from convert_runs import FIXTURES, NAMES, ONE_OF_EACH, convert, run
from safetensors.numpy import load_file

LENGTH = 24
FLAGS = ["--seq-length", LENGTH, "--micro-batch-size", 1, "--global-batch-size", 1, "--num-threads", 1]


def dataset(name, folder):
    """The fixture's tokens, which are ASCII, as a dataset."""
    expected = load_file(FIXTURES / f"{name}.expected.safetensors")
    (folder / "t.txt").write_bytes(expected["stream"].astype(np.uint8).tobytes())
    run(["prepare", "--input", folder / "t.txt", "--output-prefix", folder / "t"])
    return expected


def token_losses(model, folder, flags=(), ranks=1):
    """What megac eval computes from a checkpoint or a directory: (windows, tokens), in the order of the data."""
    out = folder / "losses.safetensors"
    run(["eval", "--load", model, "--data-path", folder / "t", "--token-losses", out, *FLAGS, *flags], ranks)
    return load_file(out)["losses"]


def largest_error(losses, expected):
    """Of losses, which are differences of logits, relative to the largest logit."""
    assert losses.shape == expected["losses"].shape == (12, LENGTH)
    return np.abs(losses - expected["losses"]).max() / np.abs(expected["logits"]).max()


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_transformers(name, tmp_path):
    expected = dataset(name, tmp_path)
    convert(FIXTURES / name, tmp_path / "megac")
    through = token_losses(tmp_path / "megac", tmp_path)
    assert largest_error(through, expected) < 1e-5  # 1e-4 is asked for
    assert np.array_equal(through, token_losses(FIXTURES / name, tmp_path))


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
    assert largest_error(token_losses(source, tmp_path), expected) > 1e-4


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_other_layouts(name, tmp_path):
    """Four ranks read their shares straight from the directory."""
    expected = dataset(name, tmp_path)
    losses = token_losses(FIXTURES / name, tmp_path, ["--tp", 2, "--pp", 2], ranks=4)
    assert largest_error(losses, expected) < 1e-5

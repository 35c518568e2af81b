"""--override-ckpt-iteration: a loaded run goes on at another iteration's place in the data, with the weights, the optimizer
and the learning rate of its checkpoint."""

import json

import numpy as np
import pytest
from megac_runs import run, train
from test_checkpoint_py import whole_tensors
from test_resume import DROPOUT, MOCK, losses

RAMP = "--rampup-batch-size 2 2 20 --train-samples 60".split()


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """A run whose weights do not move, since its updates are far below their last bit: a step's loss says which data,
    and which dropout, it saw."""
    folder = tmp_path_factory.mktemp("still")
    args = [*MOCK, *DROPOUT, "--lr", "1e-30", "--train-iters", "12", "--save-interval", "4"]
    whole, _ = train([*args, "--save", folder / "c"], 1, folder)
    assert len({s["lm_loss"] for s in whole}) == 12
    return folder / "c", args[:-2], whole


@pytest.mark.parametrize("at, to", [(8, 4), (4, 8), (12, 0)])
def test_the_data_are_those_of_the_iteration(at, to, still, tmp_path):
    path, args, whole = still
    rest, _ = train([*args, "--load", path, "--ckpt-step", at, "--override-ckpt-iteration", to], 1, tmp_path)
    assert [s["iteration"] for s in rest] == list(range(to + 1, 13))
    for key in ("lm_loss", "grad_norm", "consumed_samples", "consumed_tokens"):
        assert [s[key] for s in rest] == [s[key] for s in whole[to:]], key


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moving")
    whole, _ = train([*MOCK, "--train-iters", "12", "--save-interval", "4", "--save", folder / "c"], 1, folder)
    return folder / "c", whole


def test_what_was_learned_stays(moving, tmp_path):
    """Every bit of parameters and moments behind a step that is passed over; the learning rate of the steps behind it."""
    path, whole = moving
    args = ["--train-iters", "12", "--load", path, "--ckpt-step", "8", "--override-ckpt-iteration", "2"]
    args += ["--iterations-to-skip", "3", "--save", tmp_path / "c", "--save-interval", "3"]
    rest, _ = train([*MOCK, *args], 1, tmp_path)
    before, want = whole_tensors(path / "iter_0000008")
    after, got = whole_tensors(tmp_path / "c" / "iter_0000003")
    assert before["optimizer_steps"] == after["optimizer_steps"] == 8 and after["consumed_samples"] == 3 * 4
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    rates = {s["iteration"]: s["learning_rate"] for s in rest if not s["skipped"]}
    assert [rates[i] for i in range(4, 8)] == [s["learning_rate"] for s in whole[8:]]
    # What it saves is an ordinary checkpoint: resumed without the flag it goes on to the same end, bit for bit.
    more = ["--train-iters", "12", "--load", tmp_path / "c", "--ckpt-step", "6"]
    assert losses(train([*MOCK, *more], 1, tmp_path)[0]) == losses(rest)[4:]


def test_a_ramp_of_batch_sizes(tmp_path):
    """The samples before an iteration are those of the ramp, not iterations times the final size."""
    args = [*MOCK, *RAMP, "--lr-warmup-iters", "0"]
    whole, _ = train([*args, "--save", tmp_path / "c"], 1, tmp_path)
    last = len(whole)
    assert whole[4]["consumed_samples"] < 5 * 4
    rest, _ = train([*args, "--load", tmp_path / "c", "--override-ckpt-iteration", "5"], 1, tmp_path)
    assert [(s["iteration"], s["consumed_samples"]) for s in rest] == [
        (s["iteration"], s["consumed_samples"]) for s in whole[5:last]
    ]


def test_without_a_checkpoint_it_says_so(tmp_path):
    args = ["train", *MOCK, "--lr-warmup-iters", "0", "--train-iters", "2", "--load", tmp_path / "none", "--load-if-exists"]
    done = run([*args, "--override-ckpt-iteration", "1", "--metrics-file", tmp_path / "m.jsonl"])
    assert "--override-ckpt-iteration 1 has no effect" in done.stderr and done.stderr.count("warning") == 1
    assert [json.loads(line)["iteration"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [1, 2]

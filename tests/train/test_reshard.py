"""A checkpoint of any layout goes on in any other: the next five losses are those of the run that was never stopped, and
every bit of parameters and moments has arrived.

Each layout saves once and loads once in what runs here; MEGAC_MATRIX=full runs all pairs for both models (three minutes):

  MEGAC_MATRIX=full tests/run.sh -k reshard
"""

import itertools
import os

import numpy as np
import pytest
from megac_runs import run, train
from test_checkpoint_py import whole_tensors

TOLERANCE = 1e-5  # relative, of losses in fp32: layouts differ in the order of sums alone
SAVED, LAST = 4, 9  # checkpoint after step 4; steps 5 to 9 are compared

COMMON = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 16 --max-position-embeddings 16 "
    "--micro-batch-size 1 --global-batch-size 4 --lr 5e-3 --lr-decay-style cosine --lr-warmup-iters 3 --min-lr 1e-4 "
    "--weight-decay 0.1 --clip-grad 1.0 --mock-data --vocab-size 61 --make-vocab-size-divisible-by 1 --eval-iters 0 "
    "--hidden-dropout 0.1 --attention-dropout 0.1 --log-interval 1 --num-threads 1"
).split()
MODELS = {
    "gpt": [],  # the embedding is the output layer too: with pp 2 both ends hold it
    "llama": (
        "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear "
        "--untie-embeddings-and-output-weights --group-query-attention --num-query-groups 2"
    ).split(),
}
LAYOUTS = {
    "one": (1, "--zero 0"),
    "tp2": (2, "--tp 2 --zero 0"),
    "pp2": (2, "--pp 2 --zero 0"),
    "dp2-zero1": (2, "--zero 1"),
    "tp2-pp2-dp2": (8, "--tp 2 --pp 2 --zero 0"),
    "dp4-zero3": (4, "--zero 3"),
}
# Once around: of those neighbours each cuts otherwise than the other.
CIRCLE = ["one", "tp2-pp2-dp2", "dp4-zero3", "pp2", "dp2-zero1", "tp2"]


def covering():
    """(model, source, destination): once around, with the models taking turns."""
    models = itertools.cycle(MODELS)
    return [(next(models), a, b) for a, b in zip(CIRCLE, CIRCLE[1:] + CIRCLE[:1])]


ALL = list(itertools.product(MODELS, LAYOUTS, LAYOUTS))
ROWS = ALL if os.environ.get("MEGAC_MATRIX") == "full" else covering()


def arguments(model, layout):
    ranks, flags = LAYOUTS[layout]
    return ranks, [*COMMON, *MODELS[model], *flags.split()]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved(model, layout): the run's save directory and the steps of the whole run; each is made once."""
    runs = {}

    def get(model, layout):
        if (model, layout) not in runs:
            folder = tmp_path_factory.mktemp(f"{model}-{layout}")
            ranks, args = arguments(model, layout)
            args += ["--train-iters", LAST, "--save", folder / "c", "--save-interval", SAVED]
            runs[model, layout] = (folder / "c", train(args, ranks, folder)[0])
        return runs[model, layout]

    return get


def go_on(model, source, layout, saved, tmp_path, *flags):
    """The last five steps, on another layout."""
    ranks, args = arguments(model, layout)
    args += ["--train-iters", LAST, "--load", saved(model, source)[0], "--ckpt-step", SAVED, *flags]
    return train(args, ranks, tmp_path)[0]


def assert_goes_on(rest, whole):
    assert [s["iteration"] for s in rest] == list(range(SAVED + 1, LAST + 1)) and len(whole) == LAST
    for a, b in zip(rest, whole[SAVED:], strict=True):
        assert a["lm_loss"] == pytest.approx(b["lm_loss"], rel=TOLERANCE, abs=0), a["iteration"]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=10 * TOLERANCE, abs=0), a["iteration"]
        for key in ("learning_rate", "consumed_samples", "consumed_tokens", "loss_scale", "skipped"):
            assert a[key] == b[key], key


def test_the_rows_cover_every_layout_and_model():
    assert sorted({source for _, source, _ in ROWS}) == sorted({to for _, _, to in ROWS}) == sorted(LAYOUTS)
    assert {model for model, _, _ in ROWS} == set(MODELS)
    assert len(ALL) == 2 * 6 * 6


@pytest.mark.parametrize("model, source, layout", ROWS)
def test_next_losses(model, source, layout, saved, tmp_path):
    assert_goes_on(go_on(model, source, layout, saved, tmp_path), saved(model, source)[1])


@pytest.mark.parametrize("model, source, layout", ROWS)
def test_every_bit_arrives(model, source, layout, saved, tmp_path):
    """Loaded, then saved again behind a step that is passed over: the same numbers in parameters and moments."""
    ranks, args = arguments(model, layout)
    args += ["--train-iters", SAVED + 1, "--iterations-to-skip", SAVED + 1, "--save", tmp_path / "c"]
    run(["train", *args, "--load", saved(model, source)[0], "--ckpt-step", SAVED], ranks)
    before, want = whole_tensors(saved(model, source)[0] / f"iter_{SAVED:07d}")
    after, got = whole_tensors(tmp_path / "c" / f"iter_{SAVED + 1:07d}")
    assert after["optimizer_steps"] == before["optimizer_steps"] == SAVED
    assert got.keys() == want.keys()
    for name in want:
        real = before["tensors"][name].get("valid_rows")  # of a vocabulary, whose padding the layout decides
        np.testing.assert_array_equal(got[name][:real], want[name][:real], err_msg=name)
        assert np.count_nonzero(want[name][:real]) > 0, name
    moments = [name for name in want if name.startswith("optimizer.")]
    assert 3 * len(moments) == 2 * len(want)  # two for each parameter


@pytest.mark.parametrize("model", MODELS)
def test_the_losses_see_the_moments(model, saved, tmp_path):
    """Without the moments the first loss is the same, those behind the first update are not, by far more than the
    tolerance."""
    source, layout = next((a, b) for m, a, b in covering() if m == model)
    rest, whole = go_on(model, source, layout, saved, tmp_path, "--no-load-optim"), saved(model, source)[1]
    assert rest[0]["lm_loss"] == pytest.approx(whole[SAVED]["lm_loss"], rel=TOLERANCE)
    for a, b in zip(rest[1:], whole[SAVED + 1 :], strict=True):
        assert abs(a["lm_loss"] / b["lm_loss"] - 1) > 100 * TOLERANCE, a["iteration"]
    with pytest.raises(AssertionError):
        assert_goes_on(rest, whole)

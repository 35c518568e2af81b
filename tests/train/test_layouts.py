"""Law 1: the layout never changes the result. Every layout's run equals the run on one rank, step by step."""
import itertools

import pytest
from megac_runs import train

TOLERANCE = 1e-5  # relative, over 20 steps in fp32: only the order of sums differs

COMMON = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32 "
    "--global-batch-size 8 --lr 3e-3 --min-lr 1e-4 --lr-decay-style cosine --lr-warmup-iters 4 --train-iters 20 "
    "--weight-decay 0.1 --clip-grad 1.0 --mock-data --vocab-size 301 --make-vocab-size-divisible-by 1 "
    "--eval-interval 10 --eval-iters 2 --log-interval 1"
).split()

MODELS = {
    "gpt": [],
    "gpt-untied": ["--untie-embeddings-and-output-weights"],
    "llama": (
        "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear "
        "--untie-embeddings-and-output-weights --group-query-attention --num-query-groups 2"
    ).split(),
    "llama-tied": (
        "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear --qk-layernorm "
        "--add-qkv-bias --group-query-attention --num-query-groups 2 --rotary-percent 0.5 --window-size 12 0"
    ).split(),
}
DROPOUT = {
    "dropout": ["--hidden-dropout", "0.1", "--attention-dropout", "0.1"],
    "no-dropout": ["--hidden-dropout", "0", "--attention-dropout", "0"],
}
# Ranks and flags of a layout.
LAYOUTS = {
    "tp2": (2, "--tp 2"),
    "tp4": (4, "--tp 4"),
    "tp2-sp": (2, "--tp 2 --sequence-parallel"),
    "pp2": (2, "--pp 2"),
    "pp4": (4, "--pp 4"),
    "pp2-gpipe": (2, "--pp 2 --pipeline-schedule gpipe"),
    "dp2": (2, ""),
    "dp4": (4, "--ddp-bucket-size 5000"),
    "tp2-pp2": (4, "--tp 2 --pp 2"),
    "tp2-pp2-dp2-sp": (8, "--tp 2 --pp 2 --sequence-parallel --ddp-bucket-size 5000"),
}
MICRO_BATCHES = (1, 2, 4)

_references = {}


def reference(model, dropout, tmp_path_factory):
    """The run on one rank with micro-batches of 2, made once for each model and dropout setting."""
    key = (model, dropout)
    if key not in _references:
        args = [*COMMON, *MODELS[model], *DROPOUT[dropout], "--micro-batch-size", "2"]
        _references[key] = train(args, 1, tmp_path_factory.mktemp("reference"))
    return _references[key]


def assert_same(got, want):
    (steps, evals), (want_steps, want_evals) = got, want
    assert len(steps) == len(want_steps) > 0
    for a, b in zip(steps, want_steps):
        assert a["lm_loss"] == pytest.approx(b["lm_loss"], rel=TOLERANCE), f"iteration {a['iteration']}"
        assert a["learning_rate"] == b["learning_rate"]
        assert a["consumed_samples"] == b["consumed_samples"]
    assert steps[-1]["grad_norm"] == pytest.approx(want_steps[-1]["grad_norm"], rel=TOLERANCE)
    assert len(evals) == len(want_evals)
    for a, b in zip(evals, want_evals):
        assert a["valid_loss"] == pytest.approx(b["valid_loss"], rel=TOLERANCE)


def test_reference_learns(tmp_path_factory):
    for model, dropout in itertools.product(MODELS, DROPOUT):
        steps, evals = reference(model, dropout, tmp_path_factory)
        assert steps[-1]["lm_loss"] < steps[0]["lm_loss"] - 0.05
        assert len(evals) == 2


@pytest.mark.parametrize("dropout", DROPOUT)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout, model, dropout, tmp_path, tmp_path_factory):
    ranks, flags = LAYOUTS[layout]
    # Each layout meets each size of micro-batch as models and dropout go round.
    turn = list(LAYOUTS).index(layout) + list(MODELS).index(model) + 2 * list(DROPOUT).index(dropout)
    micro = MICRO_BATCHES[turn % 3]
    if "dp4" in layout:
        micro = min(micro, 2)
    args = [*COMMON, *MODELS[model], *DROPOUT[dropout], *flags.split(), "--micro-batch-size", micro]
    assert_same(train(args, ranks, tmp_path), reference(model, dropout, tmp_path_factory))


ODD = (
    "--hidden-size 36 --num-attention-heads 6 --seq-length 24 --max-position-embeddings 24 --global-batch-size 6 "
    "--micro-batch-size 1 --lr 3e-3 --train-iters 20 --mock-data --vocab-size 301 --make-vocab-size-divisible-by 7 "
    "--log-interval 1 --hidden-dropout 0.1 --attention-dropout 0.1 --ffn-hidden-size 60"
).split()
ODD_LAYOUTS = {
    "seven layers on three stages": (3, "--num-layers 7", "--pp 3 --decoder-first-pipeline-num-layers 3"),
    "embedding and loss count as layers": (
        3,
        "--num-layers 7",
        "--pp 3 --account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split",
    ),
    "embedding and head alone on their stages": (
        3,
        "--num-layers 1",
        "--pp 3 --account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split",
    ),
    "three tensor-parallel ranks": (3, "--num-layers 2", "--tp 3"),
    "three with sequence parallel": (3, "--num-layers 2", "--tp 3 --sequence-parallel"),
    "fewer KV heads than ranks": (
        3,
        "--num-layers 2 --group-query-attention --num-query-groups 1 --add-qkv-bias",
        "--tp 3",
    ),
    "KV heads shared by pairs": (
        6,
        "--num-layers 2 --group-query-attention --num-query-groups 3 --qk-layernorm",
        "--tp 6 --sequence-parallel",
    ),
    "Xavier's limit by the real vocabulary": (
        3,
        "--num-layers 2 --init-method-xavier-uniform --untie-embeddings-and-output-weights",
        "--tp 3",
    ),
    "three replicas": (3, "--num-layers 2", "--ddp-bucket-size 1000"),
}


@pytest.mark.parametrize("name", ODD_LAYOUTS)
def test_odd_layout(name, tmp_path):
    ranks, model, flags = ODD_LAYOUTS[name]
    args = [*ODD, *model.split()]
    assert_same(train([*args, *flags.split()], ranks, tmp_path, "got"), train(args, 1, tmp_path, "want"))

"""A step's loss and all gradients against an independent model in JAX (float64), from the same weights and tokens."""

import subprocess

import numpy as np
import pytest

pytest.importorskip("jax")
import reference_model  # noqa: E402
from megac_runs import run  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

# A float32 rounds by 6e-8. A gradient is a sum of up to a hundred rounded products, whose inputs went through 3 layers:
# 20 roundings of the tensor's largest gradient in the worst case seen (2e-6), with a margin of 5 for other orders of
# summation (other processors). A gradient whose terms cancel (a key norm's bias shifts all scores of a query alike: 0
# exactly) keeps roundings of the whole model's size: 2e-8 of its largest gradient seen, 1e-7 allowed.
GRAD_TOLERANCE = 1e-5
CANCELLED_TOLERANCE = 1e-7
LOSS_TOLERANCE = 3e-7  # a mean of float32 losses, relative; 3e-8 seen

COMMON = (
    "--num-layers 3 --hidden-size 48 --num-attention-heads 6 --seq-length 19 --max-position-embeddings 23 "
    "--micro-batch-size 2 --global-batch-size 6 --lr 1 --train-iters 1 --vocab-size 301 "
    "--make-vocab-size-divisible-by 64 --hidden-dropout 0 --attention-dropout 0 --init-method-std 0.15 --num-threads 1"
).split()
MOCK = ["--mock-data"]
LLAMA = "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear".split()
GQA = "--group-query-attention --num-query-groups 2".split()
UNTIED = ["--untie-embeddings-and-output-weights"]
RMS = {"normalization": "RMSNorm", "activation": "swiglu"}
LLAMA3 = {"base": 500000.0, "llama3": {"factor": 4.0}}
# More tokens than attention's tiles hold (96 queries by 96 keys forward, 48 keys backward), a multiple of none.
LONG = "--seq-length 211 --max-position-embeddings 211 --micro-batch-size 1 --global-batch-size 2".split()

# name: (flags, configuration of the reference)
CASES = {
    "gpt": ([], {}),
    "gpt untied": (UNTIED, {}),
    "gpt squared relu": (["--squared-relu"], {"activation": "squared_relu"}),
    "gpt layernorm 1p": (["--apply-layernorm-1p"], {"apply_layernorm_1p": True}),
    "gpt window": (["--window-size", "5", "0"], {"window_size": 5}),
    "gpt kv channels": (["--kv-channels", "12"], {"kv_channels": 12}),
    "gpt qk layernorm": (["--qk-layernorm"], {"qk_layernorm": True}),
    "gpt qkv bias alone": (["--disable-bias-linear", "--add-qkv-bias"], {}),
    "gpt no positions": (["--no-position-embedding"], {}),
    "gpt odd ffn": (["--ffn-hidden-size", "77"], {}),
    "gpt norm epsilon": (["--norm-epsilon", "0.01"], {"norm_epsilon": 0.01}),
    "gpt odd sizes": (
        "--hidden-size 37 --num-attention-heads 5 --kv-channels 7 --ffn-hidden-size 53".split(),
        {"num_attention_heads": 5, "kv_channels": 7},
    ),
    "gpt long": (LONG, {}),
    "gpt, each token alone": (["--window-size", "0", "0"], {"window_size": 0}),
    "gpt rotated, gated, GQA": (
        ["--position-embedding-type", "rope", "--swiglu", *GQA],
        {"activation": "swiglu", "num_query_groups": 2, "rope": {}},
    ),
    "gpt squared relu, RMSNorm, GQA": (
        ["--squared-relu", "--normalization", "RMSNorm", *GQA],
        {"activation": "squared_relu", "normalization": "RMSNorm", "num_query_groups": 2},
    ),
    # 38 tokens of a micro-batch by 7: the last chunk is short.
    "gpt head in chunks": (["--head-chunk-tokens", "7"], {}),
    "llama": ([*LLAMA, *GQA, *UNTIED], {**RMS, "num_query_groups": 2, "rope": {}}),
    "llama tied, one KV head": (
        [*LLAMA, "--group-query-attention", "--num-query-groups", "1"],
        {**RMS, "num_query_groups": 1, "rope": {}},
    ),
    "llama window": (
        [*LLAMA, *GQA, "--window-size", "3", "0"],
        {**RMS, "num_query_groups": 2, "rope": {}, "window_size": 3},
    ),
    "llama long window": (
        [*LLAMA, *GQA, *LONG, "--window-size", "70", "0"],
        {**RMS, "num_query_groups": 2, "rope": {}, "window_size": 70},
    ),
    "llama odd sizes": (
        [*LLAMA, *UNTIED, *"--hidden-size 37 --kv-channels 10 --ffn-hidden-size 53".split()]
        + "--group-query-attention --num-query-groups 3".split(),
        {**RMS, "num_query_groups": 3, "kv_channels": 10, "rope": {}},
    ),
    "llama half rotated": ([*LLAMA, *UNTIED, "--rotary-percent", "0.5"], {**RMS, "rope": {"percent": 0.5}}),
    "llama interleaved": ([*LLAMA, *UNTIED, "--rotary-interleaved"], {**RMS, "rope": {"interleaved": True}}),
    "llama half rotated, interleaved": (
        [*LLAMA, "--rotary-interleaved", "--rotary-percent", "0.5", "--kv-channels", "12"],
        {**RMS, "kv_channels": 12, "rope": {"interleaved": True, "percent": 0.5}},
    ),
    "llama interpolated": (
        [*LLAMA, *UNTIED, "--rotary-seq-len-interpolation-factor", "4"],
        {**RMS, "rope": {"interpolation": 4.0}},
    ),
    # Long, since the frequencies that are divided by the factor turn by 0.0008 per token at most.
    "llama 3.1 scaling": (
        [*LLAMA, *GQA, *UNTIED, *LONG, "--kv-channels", "48"]
        + "--rotary-base 500000 --use-rope-scaling --rope-scaling-factor 4".split(),
        {**RMS, "num_query_groups": 2, "kv_channels": 48, "rope": LLAMA3},
    ),
    "llama qk norm, 1p": (
        [*LLAMA, *GQA, "--qk-layernorm", "--apply-layernorm-1p"],
        {**RMS, "num_query_groups": 2, "rope": {}, "qk_layernorm": True, "apply_layernorm_1p": True},
    ),
}


def step(build_dir, folder, flags):
    """Loss, parameters, gradients and batch of a step of megac."""
    line = [str(build_dir / "tests" / "train" / "step_tool"), str(folder / "s"), *COMMON, *map(str, flags)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loss = float(done.stdout.split()[-1])
    return loss, *(load_file(folder / f"s.{what}.safetensors") for what in ("params", "grads", "batch"))


def assert_equals_reference(config, loss, params, grads, batch):
    config = {"num_layers": 3, "num_attention_heads": 6, "vocab_size": 301, **config}
    want_loss, want = reference_model.step(config, params, batch["tokens"], batch["targets"], batch["loss_mask"])
    assert loss == pytest.approx(want_loss, rel=LOSS_TOLERANCE)
    assert set(grads) == set(want)
    largest = max(np.abs(g).max() for g in want.values())
    for key, g in grads.items():
        error, top = np.abs(g - want[key]).max(), np.abs(want[key]).max()
        # A comparison with NaN is false: it fails here too.
        assert (
            error <= GRAD_TOLERANCE * top + CANCELLED_TOLERANCE * largest
        ), f"{key}: off by {error:.2e}, largest {top:.2e}"


@pytest.mark.parametrize("name", CASES)
def test_initial_step(name, build_dir, tmp_path):
    flags, config = CASES[name]
    assert_equals_reference(config, *step(build_dir, tmp_path, [*MOCK, *flags]))


# Biases in every place where they can enter, norms of both kinds.
TRAINED = ["gpt qk layernorm", "gpt rotated, gated, GQA", "gpt squared relu, RMSNorm, GQA", "llama qk norm, 1p"]


@pytest.mark.parametrize("name", TRAINED)
def test_step_of_a_trained_model(name, build_dir, tmp_path):
    """Fresh biases are 0 and norms 1, which hides where they enter: the same after four large steps."""
    flags, config = CASES[name]
    flags = [*MOCK, *flags, "--add-qkv-bias"]
    run(["train", *COMMON, *flags, "--lr", "0.05", "--train-iters", "4", "--save", tmp_path / "c"])
    loss, params, grads, batch = step(build_dir, tmp_path, [*flags, "--load", tmp_path / "c"])
    for key, x in params.items():
        # A key norm's bias has no gradient: what moves it is rounding.
        if (key.endswith("bias") or "layernorm" in key) and not key.endswith("k_layernorm.bias"):
            assert len(np.unique(x)) > 1 and np.abs(x).max() > 0.02, f"{key} did not move"
    assert_equals_reference(config, loss, params, grads, batch)


def test_masked_tokens(build_dir, tmp_path):
    """--eod-mask-loss: the mean is over the tokens that count."""
    (tmp_path / "t.txt").write_text("\n".join("abcdefgh"[: 2 + i % 7] for i in range(200)))
    prepare = ["--output-prefix", tmp_path / "t", "--append-eod", "--split-documents-on", "line"]
    run(["prepare", "--input", tmp_path / "t.txt", *prepare])
    loss, params, grads, batch = step(build_dir, tmp_path, ["--data-path", tmp_path / "t", "--eod-mask-loss"])
    mask = batch["loss_mask"]
    assert ((mask == 0) == (batch["targets"] == 256)).all() and 0 < (mask == 0).sum() < mask.size / 2
    assert_equals_reference({}, loss, params, grads, batch)


# case: what of its configuration is changed. Small changes: a comparison that passes them is too loose.
CHANGES = {
    "gpt norm epsilon": {"norm_epsilon": 0.0101},
    "gpt head in chunks": {"vocab_size": 302},
    "gpt window": {"window_size": 6},
    "gpt long": {"activation": "gelu_erf"},
    "llama long window": {"window_size": 71},
    "llama": {"rope": {"base": 10100.0}},
    "llama interpolated": {"rope": {"interpolation": 4.04}},
    "llama 3.1 scaling": {"rope": {"base": 500000.0, "llama3": {"factor": 4.04}}},
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_model_is_told_apart(name, build_dir, tmp_path):
    """The reference of a slightly different model does not fit: the cases see what they are named for."""
    flags, config = CASES[name]
    numbers = step(build_dir, tmp_path, [*MOCK, *flags])
    with pytest.raises(AssertionError):
        assert_equals_reference({**config, **CHANGES[name]}, *numbers)


def test_llama3_case_has_all_bands():
    """Pairs that the scaling leaves alone, divides by the factor, and blends."""
    rope = {**reference_model.ROPE, **LLAMA3}
    ratio = reference_model.inverse_frequencies(48, {**rope, "llama3": None}) / reference_model.inverse_frequencies(
        48, rope
    )
    alone, divided = np.isclose(ratio, 1), np.isclose(ratio, 4)
    assert alone.any() and divided.any() and (~alone & ~divided).any()


def assert_distribution(key, x, std):
    # 5 standard errors of the estimates, for normal values.
    assert x.std() == pytest.approx(std, rel=5 / np.sqrt(2 * x.size)), key
    assert abs(x.mean()) < 5 * std / np.sqrt(x.size), key


@pytest.mark.parametrize(
    "flags, std, embedding_std, gamma",
    [
        (["--init-method-std", "0.03", "--embedding-init-method-std", "0.05"], 0.03, 0.05, 1),
        ([*LLAMA, *UNTIED, "--init-method-std", "0.02", "--apply-layernorm-1p"], 0.02, 0.02, 0),
    ],
    ids=["gpt", "llama"],
)
def test_initial_weights(flags, std, embedding_std, gamma, build_dir, tmp_path):
    """Standard deviations as the flags say, of output projections 1/sqrt(2 layers) of it, norms at 1, biases at 0."""
    _, params, _, _ = step(build_dir, tmp_path, [*MOCK, *flags])
    values = []
    for key, x in params.items():
        if key.endswith("bias"):
            assert (x == 0).all(), key
        elif "layernorm" in key:
            assert (x == gamma).all(), key
        else:
            scaled = "linear_proj" in key or "linear_fc2" in key
            assert_distribution(
                key, x, (embedding_std if "embedding" in key else std) / (np.sqrt(6.0) if scaled else 1)
            )
            values.append((x / x.std()).ravel()[:2000])
    # No two tensors from the same numbers.
    near = np.abs(np.corrcoef([v[: min(map(len, values))] for v in values]) - np.eye(len(values)))
    assert near.max() < 0.2


def test_initial_weights_by_xavier(build_dir, tmp_path):
    """Uniform within sqrt(6 / (inputs + outputs))."""
    _, params, _, _ = step(build_dir, tmp_path, [*MOCK, "--init-method-xavier-uniform"])
    for layer in range(3):
        for name in ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2"):
            x = params[f"decoder.layers.{layer}.{name}.weight"]
            bound = np.sqrt(6.0 / sum(x.shape))
            assert 0.99 * bound < np.abs(x).max() <= bound, name
            assert_distribution(name, x, bound / np.sqrt(3))
    # Of the table only the rows of the vocabulary count, not the padding's.
    x = params["embedding.word_embeddings.weight"][:301]
    bound = np.sqrt(6.0 / sum(x.shape))
    assert 0.99 * bound < np.abs(x).max() <= bound
    assert_distribution("embedding", x, bound / np.sqrt(3))

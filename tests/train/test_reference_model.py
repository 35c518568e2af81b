"""A step's loss and all gradients against an independent model in JAX (float64), from the same initial weights and tokens."""
import os
import subprocess

import numpy as np
import pytest

pytest.importorskip("jax")
import reference_model  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

# float32 has 6e-8 of rounding; a gradient element is a sum of some hundred products through 2 or 3 layers, whose partial
# sums are larger than the result: 3e-5 of the tensor's largest gradient covers the worst case seen (6e-6) with a margin.
GRAD_TOLERANCE = 3e-5
LOSS_TOLERANCE = 2e-6

COMMON = (
    "--num-layers 3 --hidden-size 48 --num-attention-heads 6 --seq-length 19 --max-position-embeddings 23 "
    "--micro-batch-size 2 --global-batch-size 6 --lr 1 --train-iters 1 --mock-data --vocab-size 301 "
    "--make-vocab-size-divisible-by 64 --hidden-dropout 0 --attention-dropout 0 --init-method-std 0.15"
).split()
LLAMA = "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear".split()
GQA = "--group-query-attention --num-query-groups 2".split()
UNTIED = ["--untie-embeddings-and-output-weights"]
RMS = {"normalization": "RMSNorm", "activation": "swiglu"}

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
    "llama": ([*LLAMA, *GQA, *UNTIED], {**RMS, "num_query_groups": 2, "rope": {}}),
    "llama tied, one KV head": (
        [*LLAMA, "--group-query-attention", "--num-query-groups", "1"],
        {**RMS, "num_query_groups": 1, "rope": {}},
    ),
    "llama half rotated": ([*LLAMA, *UNTIED, "--rotary-percent", "0.5"], {**RMS, "rope": {"percent": 0.5}}),
    "llama interleaved": ([*LLAMA, *UNTIED, "--rotary-interleaved"], {**RMS, "rope": {"interleaved": True}}),
    "llama interpolated": (
        [*LLAMA, *UNTIED, "--rotary-seq-len-interpolation-factor", "4"],
        {**RMS, "rope": {"interpolation": 4.0}},
    ),
    # Head size 48 and this base put pairs into each of the three bands of Llama 3.1's rule.
    "llama 3.1 scaling": (
        [*LLAMA, *GQA, *UNTIED, "--rotary-base", "500000", "--use-rope-scaling", "--kv-channels", "48"],
        {**RMS, "num_query_groups": 2, "kv_channels": 48, "rope": {"base": 500000.0, "llama3": {"factor": 8.0}}},
    ),
    "llama qk norm, 1p": (
        [*LLAMA, *GQA, "--qk-layernorm", "--apply-layernorm-1p"],
        {**RMS, "num_query_groups": 2, "rope": {}, "qk_layernorm": True, "apply_layernorm_1p": True},
    ),
}


def step(build_dir, folder, flags):
    """Loss, parameters, gradients and batch of megac's first step."""
    line = [str(build_dir / "tests" / "train" / "step_tool"), str(folder / "s"), *COMMON, *flags]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 0, done.stderr
    loss = float(done.stdout.split()[-1])
    return loss, *(load_file(folder / f"s.{what}.safetensors") for what in ("params", "grads", "batch"))


@pytest.mark.parametrize("name", CASES)
def test_step(name, build_dir, tmp_path):
    flags, config = CASES[name]
    loss, params, grads, batch = step(build_dir, tmp_path, flags)
    config = {"num_layers": 3, "num_attention_heads": 6, "vocab_size": 301, **config}
    want_loss, want = reference_model.step(config, params, batch["tokens"], batch["targets"])
    assert loss == pytest.approx(want_loss, rel=LOSS_TOLERANCE)
    assert set(grads) == set(want)
    largest = max(np.abs(g).max() for g in want.values())
    for key, g in grads.items():
        assert np.isfinite(g).all(), key
        # A key norm's bias shifts all scores of a query alike: its gradient is 0 but for rounding, which is measured against
        # the whole model's.
        top = max(np.abs(want[key]).max(), 1e-3 * largest)
        error = np.abs(g - want[key]).max()
        assert error <= GRAD_TOLERANCE * top, f"{key}: {error / top:.2e} of the largest gradient"


def test_initial_weights(build_dir, tmp_path):
    """Standard deviations as the flags say, output projections scaled by 1 / sqrt(2 layers), norms at one, biases at zero."""
    _, params, _, _ = step(build_dir, tmp_path, ["--init-method-std", "0.03", "--embedding-init-method-std", "0.05"])
    for key, x in params.items():
        if key.endswith("bias"):
            assert (x == 0).all(), key
        elif "layernorm" in key:
            assert (x == 1).all(), key
        else:
            std = 0.05 if "embedding" in key else 0.03
            std /= np.sqrt(6.0) if "linear_proj" in key or "linear_fc2" in key else 1
            # 5 standard errors of the estimate.
            assert x.std() == pytest.approx(std, rel=5 / np.sqrt(2 * x.size)), key
            assert abs(x.mean()) < 5 * std / np.sqrt(x.size), key

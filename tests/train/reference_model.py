"""A whole GPT or Llama model and its gradients by automatic differentiation (JAX, float64): what one step of megac must
equal. Written from the papers and from Megatron-LM's layout of parameters; shares nothing with megac.

usage: reference_model.py CONFIG.json PARAMS.safetensors BATCH.safetensors GRADS.safetensors

CONFIG keys (defaults in DEFAULTS below): num_layers, num_attention_heads and num_query_groups are needed.
PARAMS: float32 tensors under Megatron-LM's names. linear_qkv holds, for each KV group, the rows of the group's query
heads, its key and its value; linear_fc1 with SwiGLU holds the rows of the gate, then those of the other factor.
BATCH: tokens and targets (B, T) int32, optional loss_mask (B, T).
Prints the mean loss (17 digits); GRADS gets the gradient of the mean loss for every parameter, float64.
"""

import json
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

jax.config.update("jax_enable_x64", True)

DEFAULTS = {
    "num_query_groups": None,  # heads
    "kv_channels": None,  # hidden size / heads
    "normalization": "LayerNorm",  # or RMSNorm
    "norm_epsilon": 1e-5,
    "apply_layernorm_1p": False,
    "activation": "gelu_tanh",  # gelu_tanh, gelu_erf, squared_relu, swiglu
    "qk_layernorm": False,
    "window_size": None,  # keys seen to the left of a query; None: all
    "rope": None,  # None (learned or no positions), or {"base", "percent", "interpolation", "interleaved", "llama3"}
}
ROPE = {"base": 10000.0, "percent": 1.0, "interpolation": 1.0, "interleaved": False, "llama3": None}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_length": 8192}


def norm(p, prefix, x, cfg):
    weight = p[prefix + ".weight"] + (1.0 if cfg["apply_layernorm_1p"] else 0.0)
    if cfg["normalization"] == "LayerNorm":
        x = x - x.mean(-1, keepdims=True)
    y = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + cfg["norm_epsilon"]) * weight
    return y + p.get(prefix + ".bias", 0.0)


def linear(p, prefix, x):
    return x @ p[prefix + ".weight"].T + p.get(prefix + ".bias", 0.0)


def inverse_frequencies(dim, rope):
    f = rope["base"] ** (-np.arange(0, dim, 2) / dim)
    if rope["llama3"] is not None:
        s = {**LLAMA3, **rope["llama3"]}
        wave = 2 * np.pi / f
        low, high = s["original_length"] / s["low_freq_factor"], s["original_length"] / s["high_freq_factor"]
        blend = (s["original_length"] / wave - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
        middle = (1 - blend) * f / s["factor"] + blend * f
        f = np.where(wave > low, f / s["factor"], np.where(wave < high, f, middle))
    return f / rope["interpolation"]


def rotate(x, rope):
    """x (B, T, heads, H): rotary positions on the first percent of H."""
    dim = int(x.shape[-1] * rope["percent"])
    dim -= dim % 2
    angle = np.arange(x.shape[1])[:, None] * inverse_frequencies(dim, rope)[None, :]
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    turned, rest = x[..., :dim], x[..., dim:]
    if rope["interleaved"]:
        a, b = turned[..., 0::2], turned[..., 1::2]
        y = jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(turned.shape)
    else:
        a, b = turned[..., : dim // 2], turned[..., dim // 2 :]
        y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    return jnp.concatenate([y, rest], -1)


def attention(p, prefix, x, cfg):
    B, T, C = x.shape
    heads, groups = cfg["num_attention_heads"], cfg["num_query_groups"]
    size, r = cfg["kv_channels"], heads // groups
    qkv = linear(p, prefix + ".linear_qkv", x).reshape(B, T, groups, r + 2, size)
    q, k, v = qkv[:, :, :, :r].reshape(B, T, heads, size), qkv[:, :, :, r], qkv[:, :, :, r + 1]
    if cfg["qk_layernorm"]:
        q, k = norm(p, prefix + ".q_layernorm", q, cfg), norm(p, prefix + ".k_layernorm", k, cfg)
    if cfg["rope"] is not None:
        q, k = rotate(q, cfg["rope"]), rotate(k, cfg["rope"])
    scores = jnp.einsum("btgjh,bugh->bgjtu", q.reshape(B, T, groups, r, size), k) / np.sqrt(size)
    behind = np.arange(T)[:, None] - np.arange(T)[None, :]
    seen = (behind >= 0) & (cfg["window_size"] is None or behind <= cfg["window_size"])
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    out = jnp.einsum("bgjtu,bugh->btgjh", weights, v).reshape(B, T, heads * size)
    return linear(p, prefix + ".linear_proj", out)


def mlp(p, prefix, x, cfg):
    h, kind = linear(p, prefix + ".linear_fc1", x), cfg["activation"]
    if kind == "swiglu":
        gate, up = jnp.split(h, 2, axis=-1)
        h = gate / (1 + jnp.exp(-gate)) * up
    elif kind == "gelu_tanh":
        h = 0.5 * h * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    elif kind == "gelu_erf":
        h = 0.5 * h * (1 + jax.scipy.special.erf(h / np.sqrt(2.0)))
    elif kind == "squared_relu":
        h = jnp.maximum(h, 0.0) ** 2
    else:
        sys.exit(f"reference_model.py: unknown activation {kind}")
    return linear(p, prefix + ".linear_fc2", h)


def logits(p, tokens, cfg):
    """Scores (B, T, vocabulary) of what follows each token; `cfg` complete."""
    x = p["embedding.word_embeddings.weight"][tokens]
    if "embedding.position_embeddings.weight" in p:
        x = x + p["embedding.position_embeddings.weight"][: tokens.shape[1]]
    for i in range(cfg["num_layers"]):
        layer = f"decoder.layers.{i}"
        x = x + attention(p, layer + ".self_attention", norm(p, layer + ".input_layernorm", x, cfg), cfg)
        x = x + mlp(p, layer + ".mlp", norm(p, layer + ".pre_mlp_layernorm", x, cfg), cfg)
    x = norm(p, "decoder.final_layernorm", x, cfg)
    head = p["output_layer.weight"] if "output_layer.weight" in p else p["embedding.word_embeddings.weight"]
    return (x @ head.T)[..., : cfg["vocab_size"]]  # rows past the vocabulary are padding


def mean_loss(p, tokens, targets, mask, cfg):
    log_p = jax.nn.log_softmax(logits(p, tokens, cfg), axis=-1)
    losses = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return (losses * mask).sum() / mask.sum()


def complete(cfg, params):
    """Defaults, and what follows from shapes."""
    unknown = set(cfg) - set(DEFAULTS) - {"num_layers", "num_attention_heads", "vocab_size"}
    if unknown:
        sys.exit(f"reference_model.py: unknown keys {sorted(unknown)} in the configuration")
    cfg = {**DEFAULTS, **cfg}
    vocab, hidden = params["embedding.word_embeddings.weight"].shape
    cfg["num_query_groups"] = cfg["num_query_groups"] or cfg["num_attention_heads"]
    cfg["kv_channels"] = cfg["kv_channels"] or hidden // cfg["num_attention_heads"]
    cfg["vocab_size"] = cfg.get("vocab_size") or vocab
    if cfg["rope"] is not None:
        cfg["rope"] = {**ROPE, **cfg["rope"]}
    return cfg


def step(cfg, params, tokens, targets, mask=None):
    """Mean loss and the gradients of all parameters, float64. `params`: name -> array."""
    cfg = complete(cfg, params)
    mask = np.ones(tokens.shape) if mask is None else mask.astype(np.float64)
    p = {name: jnp.asarray(np.asarray(x, np.float64)) for name, x in params.items()}
    # One operation after another: compiling a whole model that runs once takes five times as long.
    loss, grads = jax.value_and_grad(lambda p: mean_loss(p, tokens, targets, mask, cfg))(p)
    return float(loss), {name: np.asarray(g) for name, g in grads.items()}


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    with open(sys.argv[1]) as file:
        cfg = json.load(file)
    params, batch = load_file(sys.argv[2]), load_file(sys.argv[3])
    loss, grads = step(cfg, params, batch["tokens"], batch["targets"], batch.get("loss_mask"))
    save_file(grads, sys.argv[4])
    print(f"{loss:.17g}")


if __name__ == "__main__":
    main()

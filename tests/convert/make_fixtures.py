"""Makes tests/convert/fixtures with torch and transformers: tiny models with random weights, and what transformers
computes with them. Run by hand (README.md); the tests themselves need neither package.

    python make_fixtures.py                 writes the fixtures
    python make_fixtures.py --check DIR...  for directories that megac wrote: transformers' logits of the fixture whose
                                            name the directory has, compared with the stored ones
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

FIXTURES = Path(__file__).resolve().parent / "fixtures"
VOCAB = 259  # all of ByteTokenizer's 257, and a number that nothing divides
WINDOWS, LENGTH = 12, 24
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
MODELS = {
    "gpt2": transformers.GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=4, n_positions=32),
    "gpt2-untied": transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=24, n_inner=28, tie_word_embeddings=False
    ),
    "llama2": transformers.LlamaConfig(**SHAPE | {"num_key_value_heads": 4}),
    "llama3": transformers.LlamaConfig(
        **SHAPE | {"rope_scaling": LLAMA3, "rope_theta": 500000.0, "head_dim": 8, "tie_word_embeddings": True, "max_position_embeddings": 16384}
    ),
    "llama-biases": transformers.LlamaConfig(
        **SHAPE | {"attention_bias": True, "mlp_bias": True, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    ),
    "mistral": transformers.MistralConfig(**SHAPE | {"sliding_window": 7, "rms_norm_eps": 1e-5}),
    "qwen2": transformers.Qwen2Config(**SHAPE | {"rope_theta": 1000000.0}),
    "qwen3": transformers.Qwen3Config(**SHAPE | {"head_dim": 6, "tie_word_embeddings": True}),
}
HALF = {"qwen2": torch.bfloat16, "llama3": torch.float16}  # the others are stored as f32
SHARDED = {"qwen2", "llama2"}


def fill(model):
    """Random weights, large enough that every part of the model shows in the logits."""
    for name, p in model.named_parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.8 if "embed" in name or "wte" in name else 0.25)
        elif name.endswith("bias"):
            torch.nn.init.normal_(p, std=0.2)
        else:
            torch.nn.init.normal_(p, mean=1.0, std=0.3)


def logits_of(path, tokens):
    """What transformers computes from a directory, in f32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, torch_dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.float().numpy()


def make(name, config):
    """One fixture: NAME/ as save_pretrained writes it, and NAME.expected.safetensors: a stream of
    tokens, the loss of each of its windows' tokens, and the logits of the first window."""
    path = FIXTURES / name
    shutil.rmtree(path, ignore_errors=True)
    model = transformers.AutoModelForCausalLM.from_config(config)
    fill(model)
    model.to(HALF.get(name, torch.float32))
    model.save_pretrained(path, max_shard_size="24KB" if name in SHARDED else "5GB")
    (path / "generation_config.json").unlink(missing_ok=True)
    stream = np.random.default_rng(len(name)).integers(32, 127, WINDOWS * LENGTH + 1, dtype=np.int32)  # ASCII
    tokens, targets = stream[:-1].reshape(WINDOWS, LENGTH), stream[1:].reshape(WINDOWS, LENGTH)
    logits = logits_of(path, tokens).astype(np.float64)
    losses = np.log(np.exp(logits).sum(axis=-1)) - np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    expected = {"stream": stream, "losses": losses.astype(np.float32), "logits": logits[0].astype(np.float32)}
    save_file(expected, FIXTURES / f"{name}.expected.safetensors")


def check(path):
    """Largest difference from the stored logits, relative to the largest logit."""
    expected = load_file(FIXTURES / f"{path.name}.expected.safetensors")
    logits = logits_of(path, expected["stream"][None, :LENGTH])[0]
    return np.abs(logits - expected["logits"]).max() / np.abs(expected["logits"]).max()


def main():
    """See the top of the file."""
    if sys.argv[1:2] == ["--check"]:
        errors = {p: check(Path(p)) for p in sys.argv[2:]}
        for path, error in errors.items():
            print(f"{path}: {error:.1e}")
        return 0 if errors and max(errors.values()) < 1e-4 else 1
    torch.manual_seed(1234)
    for name, config in MODELS.items():
        make(name, config)
        kind = json.loads((FIXTURES / name / "config.json").read_text())["architectures"]
        print(name, *kind, sum(f.stat().st_size for f in (FIXTURES / name).iterdir()), "bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

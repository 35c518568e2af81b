"""What megac convert refuses: damaged files, models that it does not have, formats that it does not read. Always exit
status 2, one line that names the culprit, and no trace of an output."""

import json
import shutil

import pytest
from convert_runs import FIXTURES, convert, run


def edit(folder, changes):
    """A field of config.json; None takes it out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "REMOVE"}))


ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# Fixture, changed fields of config.json, what the message names.
CONFIGS = [
    ("llama2", {"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM"),
    ("llama2", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ("llama2", {"model_type": "mixtral"}, "mixtral"),
    ("llama2", {"architectures": "REMOVE", "model_type": "REMOVE"}, "none"),
    ("llama2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ("llama2", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "dynamic"),
    ("llama2", {"rope_scaling": {"rope_type": "linear", "factor": 2.5}}, "rope_scaling"),
    ("llama2", {"rope_scaling": {"factor": 2.0}}, "rope_type"),
    ("llama3", {"rope_scaling": ROPE | {"original_max_position_embeddings": 4096}}, "4096"),
    ("llama3", {"rope_scaling": ROPE | {"original_max_position_embeddings": 8192, "low_freq_factor": 2}}, "low"),
    ("llama3", {"rope_scaling": ROPE | {"original_max_position_embeddings": 8192, "mscale": 2}}, "mscale"),
    ("llama2", {"rope_theta": 10000.5}, "rope_theta"),
    ("llama2", {"rope_theta": "many"}, "rope_theta"),
    ("llama2", {"hidden_act": "gelu"}, "hidden_act"),
    ("llama2", {"attention_bias": True}, "attention_bias"),
    ("llama2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama2", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ("llama2", {"logit_scale": 0.5}, "logit_scale"),
    ("llama2", {"hidden_size": "REMOVE"}, "hidden_size"),
    ("llama2", {"hidden_size": 16.5}, "hidden_size"),
    ("llama2", {"num_attention_heads": 0}, "num_attention_heads"),
    ("llama2", {"num_key_value_heads": 3}, "num_key_value_heads"),
    ("llama3", {"head_dim": 3}, "head_dim"),
    ("llama2", {"num_hidden_layers": 10**12}, "--num-layers"),
    ("mistral", {"sliding_window": -3}, "sliding_window"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "layer_types": None}, "1 of 2"),
    ("qwen3", {"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
    ("qwen3", {"attention_bias": True}, "attention_bias"),
    ("gpt2", {"activation_function": "gelu"}, "activation_function"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("gpt2", {"n_head": 5}, "n_head"),
    ("gpt2", {"tie_word_embeddings": False}, "lm_head.weight"),
    ("gpt2", {"n_layer": 1}, "transformer.h.1."),
    ("gpt2", {"n_layer": 3}, "transformer.h.2."),
    ("gpt2", {"vocab_size": 260}, "transformer.wte.weight"),
]


@pytest.mark.parametrize("name, changes, named", CONFIGS, ids=lambda v: str(v)[:50])
def test_configs(name, changes, named, tmp_path):
    source = shutil.copytree(FIXTURES / name, tmp_path / "source")
    edit(source, changes)
    done = convert(source, tmp_path / "out", expect=2)
    assert named in done.stderr and str(source) in done.stderr


def rewrite(path, change):
    """The file with its tensors (name -> type, shape, bytes) changed, written without the library's checks."""
    import safetensors

    tensors = {n: [t["dtype"], list(t["shape"]), bytes(t["data"])] for n, t in safetensors.deserialize(path.read_bytes())}
    change(tensors)
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(t[2] for t in tensors.values()))


def other_shape(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"][1].reverse()


def flat(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"][1] = [28 * 16]


def whole_numbers(tensors):
    tensors["model.layers.0.self_attn.v_proj.weight"][0] = "I32"


def stranger(tensors):
    tensors["model.layers.0.self_attn.q_proj.lora_A.weight"] = ["F32", [1], b"\0\0\0\0"]


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda t: t.pop("model.layers.1.self_attn.k_proj.weight"), "model.layers.1.self_attn.k_proj.weight"),
        (other_shape, "28"),
        (flat, "448"),
        (whole_numbers, "I32"),
        (stranger, "lora_A"),
    ],
)
def test_tensors(change, named, tmp_path):
    source = shutil.copytree(FIXTURES / "mistral", tmp_path / "source")
    rewrite(source / "model.safetensors", change)
    assert named in convert(source, tmp_path / "out", expect=2).stderr


def test_truncated_at_any_place(tmp_path):
    source = shutil.copytree(FIXTURES / "gpt2", tmp_path / "source")
    whole = (source / "model.safetensors").read_bytes()
    for cut in (0, 5, 8, 100, len(whole) // 2, len(whole) - 1):
        (source / "model.safetensors").write_bytes(whole[:cut])
        assert "model.safetensors" in convert(source, tmp_path / "out", expect=2).stderr


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1, "a": 2}', "\0\0", '"text"'])
def test_config_that_is_no_object(text, tmp_path):
    source = shutil.copytree(FIXTURES / "gpt2", tmp_path / "source")
    (source / "config.json").write_text(text)
    assert "config.json" in convert(source, tmp_path / "out", expect=2).stderr


def test_shards_and_their_index(tmp_path):
    """A lost file, a lost index, an index that names nonsense."""
    index = "model.safetensors.index.json"

    def damaged(name, change):
        source = shutil.copytree(FIXTURES / "qwen2", tmp_path / name)
        change(source)
        return convert(source, tmp_path / "out", expect=2).stderr

    def change_index(change):
        def write(source):
            content = json.loads((source / index).read_text())
            change(content)
            (source / index).write_text(json.dumps(content))

        return write

    def swapped(files):
        return {"model.norm.weight": next(f for f in files.values() if f != files["model.norm.weight"])}

    second = "model-00002-of-00002.safetensors"
    assert second in damaged("a", lambda s: (s / second).unlink())
    assert index in damaged("b", lambda s: (s / index).unlink())
    assert "weight_map" in damaged("c", change_index(lambda c: c.pop("weight_map")))
    assert "model.norm.weight" in damaged("d", change_index(lambda c: c["weight_map"].pop("model.norm.weight")))
    assert "beside" in damaged("e", change_index(lambda c: c["weight_map"].update({"model.norm.weight": "../x"})))
    assert "model.norm.weight" in damaged("f", change_index(lambda c: c["weight_map"].update(swapped(c["weight_map"]))))


def test_formats_that_are_not_read(tmp_path):
    """Megatron-LM's checkpoints and pickles are named for what they are."""
    for name, path in {"a": "iter_0000010/__0_0.distcp", "b": "iter_0000010/mp_rank_00/model_optim_rng.pt"}.items():
        file = tmp_path / name / path
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x")
        (tmp_path / name / "latest_checkpointed_iteration.txt").write_text("10\n")
        assert "torch_dist" in convert(tmp_path / name, tmp_path / "out", expect=2).stderr
    pickles = tmp_path / "c"
    pickles.mkdir()
    shutil.copy(FIXTURES / "gpt2/config.json", pickles)
    (pickles / "pytorch_model.bin").write_bytes(b"x")
    assert "safe_serialization" in convert(pickles, tmp_path / "out", expect=2).stderr
    (tmp_path / "d").mkdir()
    assert "neither" in convert(tmp_path / "d", tmp_path / "out", expect=2).stderr
    assert "no such directory" in convert(tmp_path / "none", tmp_path / "out", expect=2).stderr


def test_wrong_use(tmp_path):
    assert "--output" in run(["convert", "--input", FIXTURES / "gpt2"], expect=2).stderr
    assert "--to hf" in convert(FIXTURES / "gpt2", tmp_path / "out", "--to", "hf", expect=2).stderr
    assert "float8" in convert(FIXTURES / "gpt2", tmp_path / "out", "--dtype", "float8", expect=2).stderr
    done = run(["convert", "--input", FIXTURES / "gpt2", "--output", tmp_path / "out"], ranks=2, expect=2)
    assert "one process" in done.stderr


TRAIN = (
    "--num-layers 1 --hidden-size 16 --num-attention-heads 2 --seq-length 8 --micro-batch-size 1 --global-batch-size 1 "
    "--lr 1e-3 --mock-data --vocab-size 40 --train-iters 1 --num-threads 1"
).split()
ROPED = "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear".split()


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--squared-relu"], "--squared-relu"),
        (["--normalization", "RMSNorm"], "RMSNorm"),
        (["--position-embedding-type", "none"], "none"),
        ([*ROPED, "--rotary-interleaved"], "--rotary-interleaved"),
        ([*ROPED, "--rotary-percent", "0.5"], "--rotary-percent"),
        ([*ROPED, "--apply-layernorm-1p"], "--apply-layernorm-1p"),
        ([*ROPED, "--qk-layernorm", "--add-qkv-bias"], "--qk-layernorm"),
    ],
)
def test_models_that_hugging_face_lacks(flags, named, tmp_path):
    run(["train", *TRAIN, *flags, "--save", tmp_path / "megac"])
    assert named in convert(tmp_path / "megac", tmp_path / "out", expect=2).stderr


def test_damaged_checkpoint(tmp_path):
    """One flipped bit anywhere in the weights: nothing comes out."""
    convert(FIXTURES / "gpt2-untied", tmp_path / "megac")
    shard = next((tmp_path / "megac/iter_0000000").glob("*.safetensors"))
    whole = bytearray(shard.read_bytes())
    for at in (100, len(whole) // 3, len(whole) - 1):
        whole[at] ^= 16
        shard.write_bytes(whole)
        assert "damaged" in convert(tmp_path / "megac", tmp_path / "out", expect=2).stderr
        whole[at] ^= 16
    shard.write_bytes(whole)
    convert(tmp_path / "megac", tmp_path / "out")

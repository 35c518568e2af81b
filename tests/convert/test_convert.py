"""megac convert keeps every bit on the way to a checkpoint and back, whatever the layout and the number of files."""

import json
import shutil

import numpy as np
import pytest
from convert_runs import FIXTURES, NAMES, ONE_OF_EACH, convert, global_tensors, run, stored

TRAIN = (
    "--num-layers 3 --hidden-size 24 --num-attention-heads 4 --seq-length 16 --micro-batch-size 1 --global-batch-size 4 "
    "--lr 1e-3 --mock-data --vocab-size 61 --train-iters 2 --num-threads 1"
).split()
LLAMA = "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear".split()
GROUPS = "--group-query-attention --num-query-groups 2".split()
# Flags, layout, and the class that they come out as.
TRAINED = {
    "gpt": ([], 1, [], "GPT2LMHeadModel"),
    "gpt untied tp2 pp3": (["--untie-embeddings-and-output-weights"], 6, ["--tp", 2, "--pp", 3], "GPT2LMHeadModel"),
    "llama tp4": (
        [*LLAMA, *GROUPS, "--use-rope-scaling", "--untie-embeddings-and-output-weights"],
        4,
        ["--tp", 4],
        "LlamaForCausalLM",
    ),
    "mistral dp2 zero3": ([*LLAMA, *GROUPS, "--window-size", 5, 0], 2, ["--zero", 3], "MistralForCausalLM"),
    "qwen2 tp2": ([*LLAMA, *GROUPS, "--add-qkv-bias"], 2, ["--tp", 2], "Qwen2ForCausalLM"),
    "qwen3 tp2": ([*LLAMA, *GROUPS, "--qk-layernorm", "--kv-channels", 8], 2, ["--tp", 2], "Qwen3ForCausalLM"),
}


@pytest.mark.parametrize("name", NAMES)
def test_from_hugging_face_and_back(name, tmp_path):
    """Tensors bit for bit, and config.json byte for byte."""
    convert(FIXTURES / name, tmp_path / "megac")
    convert(tmp_path / "megac", tmp_path / "hf")
    assert stored(tmp_path / "hf") == stored(FIXTURES / name)
    assert (tmp_path / "hf/config.json").read_bytes() == (FIXTURES / name / "config.json").read_bytes()
    run(["inspect", tmp_path / "megac", "--verify"])


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_config_of_our_own_says_the_same(name, tmp_path):
    """Without the config.json that it came with, a checkpoint gets one that makes the same checkpoint."""
    convert(FIXTURES / name, tmp_path / "megac")
    shutil.rmtree(tmp_path / "megac/huggingface")
    convert(tmp_path / "megac", tmp_path / "hf")
    config, first = (json.loads((p / "config.json").read_text()) for p in (tmp_path / "hf", FIXTURES / name))
    for key in set(config) & set(first) - {"bos_token_id", "eos_token_id", "max_window_layers"}:
        assert first[key] in (None, config[key]), key
    convert(tmp_path / "hf", tmp_path / "again")
    for a, b in zip(*((p / "iter_0000000").iterdir() for p in (tmp_path / "megac", tmp_path / "again"))):
        assert a.read_bytes() == b.read_bytes(), a.name


@pytest.mark.parametrize("name", TRAINED)
def test_from_megac_and_back(name, tmp_path):
    """A checkpoint of any layout: what comes back holds the same numbers, and goes out again as the same directory."""
    flags, ranks, layout, cls = TRAINED[name]
    run(["train", *TRAIN, *flags, *layout, "--save", tmp_path / "megac"], ranks)
    convert(tmp_path / "megac", tmp_path / "hf")
    assert json.loads((tmp_path / "hf/config.json").read_text())["architectures"] == [cls]
    convert(tmp_path / "hf", tmp_path / "back")
    first, back = global_tensors(tmp_path / "megac"), global_tensors(tmp_path / "back")
    assert first.keys() == back.keys() and len(first) > 10
    for key in first:
        assert first[key].tobytes() == back[key].tobytes(), key
    convert(tmp_path / "back", tmp_path / "hf2")
    assert stored(tmp_path / "hf2") == stored(tmp_path / "hf")
    # The iteration's own directory is an input, too.
    convert(next((tmp_path / "megac").glob("iter_*")), tmp_path / "hf3")
    assert stored(tmp_path / "hf3") == stored(tmp_path / "hf")


def test_several_files(tmp_path):
    """--max-shard-size cuts between tensors; the library and we read the result."""
    convert(FIXTURES / "qwen3", tmp_path / "megac")
    convert(tmp_path / "megac", tmp_path / "hf", "--max-shard-size", 9000)
    files = sorted(p.name for p in (tmp_path / "hf").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    want = stored(FIXTURES / "qwen3")
    assert stored(tmp_path / "hf") == want
    assert all(p.stat().st_size < 9000 + 2000 or p == tmp_path / "hf" / files[0] for p in (tmp_path / "hf").glob("m*.s*"))
    convert(tmp_path / "hf", tmp_path / "again")
    convert(tmp_path / "again", tmp_path / "one")
    assert stored(tmp_path / "one") == want


@pytest.mark.parametrize("flag, dtype, name", [("bf16", "BF16", "bfloat16"), ("float16", "F16", "float16")])
def test_other_element_type(flag, dtype, name, tmp_path):
    """Rounded to nearest once, on either way; config.json says it."""
    convert(FIXTURES / "mistral", tmp_path / "a", "--dtype", flag)
    convert(tmp_path / "a", tmp_path / "hf")
    convert(FIXTURES / "mistral", tmp_path / "b")
    convert(tmp_path / "b", tmp_path / "hf2", "--dtype", flag)
    assert stored(tmp_path / "hf") == stored(tmp_path / "hf2")
    before, after = stored(FIXTURES / "mistral"), stored(tmp_path / "hf")
    assert before.keys() == after.keys()
    for key, (kind, _, data) in after.items():
        assert kind == dtype
        want = np.frombuffer(before[key][2], np.float32)
        if dtype == "F16":
            assert np.array_equal(np.frombuffer(data, np.float16), want.astype(np.float16)), key
        else:
            got = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
            assert np.abs(got - want).max() <= np.abs(want).max() * 2**-8 and np.abs(got / want - 1).max() <= 2**-8
    assert json.loads((tmp_path / "hf/config.json").read_text())["dtype"] == name
    convert(tmp_path / "hf", tmp_path / "c", "--dtype", "fp32")
    widened = global_tensors(tmp_path / "c")
    assert {v.dtype for v in widened.values()} == {np.dtype(np.float32)}


def test_tokenizer_files_come_along(tmp_path):
    """Both ways; what is no tokenizer's stays behind."""
    source = shutil.copytree(FIXTURES / "gpt2", tmp_path / "source")
    files = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "generation_config.json"]
    for name in [*files, "training_args.bin", "README.md"]:
        (source / name).write_bytes(name.encode() * 40000)
    convert(source, tmp_path / "megac")
    convert(tmp_path / "megac/iter_0000000", tmp_path / "hf")
    for name in files:
        assert (tmp_path / "hf" / name).read_bytes() == (source / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "hf").iterdir()) == sorted([*files, "config.json", "model.safetensors"])


def test_a_model_that_changed_gets_a_new_config(tmp_path):
    """A config.json that describes another model is not passed on."""
    convert(FIXTURES / "llama2", tmp_path / "megac")
    carried = tmp_path / "megac/huggingface/config.json"
    carried.write_text(carried.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 0.001'))
    done = run(["convert", "--input", tmp_path / "megac", "--output", tmp_path / "hf"])
    assert "another model" in done.stderr
    assert json.loads((tmp_path / "hf/config.json").read_text())["rms_norm_eps"] == 1e-6


def test_a_damaged_config_is_told_before_anything_is_written(tmp_path):
    convert(FIXTURES / "llama2", tmp_path / "megac")
    carried = tmp_path / "megac/huggingface/config.json"
    carried.write_text(carried.read_text()[:-20])
    done = run(["convert", "--input", tmp_path / "megac", "--output", tmp_path / "hf"], expect=2)
    assert str(carried) in done.stderr and sorted(p.name for p in tmp_path.iterdir()) == ["megac"]


def test_outputs_are_never_overwritten(tmp_path):
    """A new or an empty directory; a trailing slash and a leftover of an earlier attempt do not matter."""
    (tmp_path / "empty").mkdir()
    run(["convert", "--input", FIXTURES / "gpt2", "--output", f"{tmp_path}/empty/"])
    first = {p: p.read_bytes() for p in (tmp_path / "empty").rglob("*") if p.is_file()}
    done = convert(FIXTURES / "qwen2", tmp_path / "empty", expect=2)
    assert "is there already" in done.stderr
    assert {p: p.read_bytes() for p in (tmp_path / "empty").rglob("*") if p.is_file()} == first
    (tmp_path / "file").write_text("mine")
    convert(FIXTURES / "qwen2", tmp_path / "file", expect=2)
    (tmp_path / "new.megac-convert-tmp").mkdir()
    (tmp_path / "new.megac-convert-tmp/part").write_text("half")
    run(["convert", "--input", FIXTURES / "gpt2", "--output", tmp_path / "new"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "new"]


def test_training_goes_on_from_either_kind(tmp_path):
    """--pretrained-checkpoint: the same run from the directory of Hugging Face and from the checkpoint made of it."""
    convert(FIXTURES / "llama3", tmp_path / "megac")
    flags = "--use-checkpoint-args --seq-length 16 --micro-batch-size 1 --global-batch-size 4 --lr 1e-3 --train-iters 2"
    flags = [*flags.split(), "--mock-data", "--num-threads", 1, "--pretrained-checkpoint"]
    losses = []
    for i, (source, ranks, layout) in enumerate(
        [(FIXTURES / "llama3", 1, []), (tmp_path / "megac", 1, []), (FIXTURES / "llama3", 4, ["--tp", 4])]
    ):
        path = tmp_path / f"{i}.jsonl"
        run(["train", *flags, source, *layout, "--metrics-file", path, "--save", tmp_path / f"s{i}"], ranks)
        losses.append([json.loads(line)["lm_loss"] for line in path.read_text().splitlines()])
    assert len(losses[0]) == 2 and losses[0] == losses[1]
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    # config.json, and the tokenizer's files where there are any, stay with the run.
    convert(tmp_path / "s2", tmp_path / "trained")
    assert (tmp_path / "trained/config.json").read_text().count('"bos_token_id": 1') == 1
    # A checkpoint of the run itself comes first; the model's flags are checked.
    again = run(["train", *flags, FIXTURES / "llama3", "--load", tmp_path / "s0", "--train-iters", 3])
    assert "loaded" in again.stdout and str(tmp_path / "s0") in again.stdout
    missing = run(["train", *flags, FIXTURES / "llama3", "--load", tmp_path / "none"])
    assert str(FIXTURES / "llama3") in missing.stdout
    alone = [f for f in flags if f != "--use-checkpoint-args"]
    shape = "--num-layers 2 --hidden-size 16 --num-attention-heads 4 --vocab-size 259".split()
    done = run(["train", *alone, FIXTURES / "llama3", *shape], expect=2)
    assert "--normalization LayerNorm (there RMSNorm)" in done.stderr
    done = run(["train", *flags[:-1], "--load", FIXTURES / "llama3"], expect=2)
    assert "--pretrained-checkpoint" in done.stderr

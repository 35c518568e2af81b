"""Checkpoints in use: resume, other layouts, stopping early, evaluation and generation from a saved run."""

import json
import re
import subprocess

import numpy as np
import pytest
from megac_runs import MEGAC, metrics, peak_bytes, run, train

MODEL = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 16 --max-position-embeddings 16 "
    "--micro-batch-size 1 --global-batch-size 4 --lr 2e-3 --lr-decay-style cosine --lr-warmup-iters 3"
).split()
MOCK = [*MODEL, "--mock-data", "--vocab-size", "61"]
DROPOUT = "--hidden-dropout 0.1 --attention-dropout 0.1".split()
LAYOUTS = {
    "one rank": (1, []),
    "tp2 pp2 sp": (4, "--tp 2 --pp 2 --sequence-parallel".split()),
    "dp2": (2, ["--ddp-bucket-size", "2000"]),
}


def step_numbers(flags, folder):
    """Parameters and first batch of megac train with these flags; --load gives the parameters."""
    from safetensors.numpy import load_file

    line = [MEGAC.parent / "tests" / "train" / "step_tool", folder / "s", *flags]
    done = subprocess.run([*map(str, line)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "s.params.safetensors"), load_file(folder / "s.batch.safetensors")


def losses(steps):
    return [(s["iteration"], s["lm_loss"], s["grad_norm"], s["learning_rate"]) for s in steps]


# What else a checkpoint has to carry: the place in a ramp of batch sizes, momentum alone.
RUNS = {
    **{layout: (ranks, [*flags, "--train-iters", "12"]) for layout, (ranks, flags) in LAYOUTS.items()},
    "ramp": (2, "--rampup-batch-size 2 2 20 --train-samples 36 --lr-warmup-iters 0 --lr-warmup-samples 7".split()),
    "sgd": (1, "--optimizer sgd --train-iters 12".split()),
}


@pytest.mark.parametrize("name", RUNS)
def test_resume_is_bit_identical(name, tmp_path):
    ranks, flags = RUNS[name]
    args = [*MOCK, *DROPOUT, *flags, "--save-interval", "6"]
    whole, _ = train([*args, "--save", tmp_path / "a"], ranks, tmp_path, "whole")
    rest, _ = train([*args, "--load", tmp_path / "a", "--ckpt-step", "6"], ranks, tmp_path, "rest")
    assert [s["iteration"] for s in rest] == list(range(7, len(whole) + 1)) and len(whole) >= 11
    assert losses(rest) == losses(whole)[6:]
    assert rest[-1]["consumed_tokens"] == whole[-1]["consumed_tokens"]
    # Both wrote their last step: the same bytes in every tensor.
    last = f"iter_{len(whole):07d}"
    run(["train", *args, "--load", tmp_path / "a", "--ckpt-step", "6", "--save", tmp_path / "b"], ranks)
    shards = sorted(p.name for p in (tmp_path / "a" / last).glob("*.safetensors"))
    assert shards
    for shard in shards:
        assert (tmp_path / "a" / last / shard).read_bytes() == (tmp_path / "b" / last / shard).read_bytes(), shard


LLAMA = (
    "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear --group-query-attention "
    "--num-query-groups 2"
).split()
OTHERS = {
    "one rank": (1, []),
    "pp2": (2, ["--pp", "2"]),
    "dp2": (2, []),
    "tp4, fewer KV heads": (4, ["--tp", "4"]),
    "tp2 pp2 dp2 sp": (8, "--tp 2 --pp 2 --sequence-parallel".split()),
}


@pytest.fixture(scope="module")
def saved_on_tp2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tp2")
    args = [*MOCK, *LLAMA, *DROPOUT, "--train-iters", "9", "--tp", "2", "--save-interval", "4", "--save", folder / "c"]
    steps, _ = train(args, 2, folder)
    return folder / "c", steps


@pytest.mark.parametrize("layout", OTHERS)
def test_any_layout_goes_on(layout, saved_on_tp2, tmp_path):
    path, whole = saved_on_tp2
    ranks, flags = OTHERS[layout]
    args = [*MOCK, *LLAMA, *DROPOUT, *flags, "--train-iters", "9", "--load", path, "--ckpt-step", "4"]
    rest, _ = train(args, ranks, tmp_path)
    assert len(rest) == 5
    for a, b in zip(rest, whole[4:]):
        assert a["lm_loss"] == pytest.approx(b["lm_loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("ranks, flags", [(1, []), (3, ["--tp", "3"]), (4, ["--tp", "2", "--pp", "2"])])
def test_tied_embeddings_and_replicated_heads_move_between_layouts(ranks, flags, tmp_path):
    """Saved where every KV head and the tied table are held twice, loaded where they are held otherwise."""
    model = [*MOCK, *DROPOUT, "--hidden-size", "48", "--num-attention-heads", "12", "--kv-channels", "4"]
    model += ["--group-query-attention", "--num-query-groups", "1", "--qk-layernorm", "--train-iters", "8"]
    whole, _ = train(
        [*model, "--tp", "2", "--pp", "2", "--save-interval", "4", "--save", tmp_path / "c"], 4, tmp_path, "a"
    )
    rest, _ = train([*model, *flags, "--load", tmp_path / "c", "--ckpt-step", "4"], ranks, tmp_path, "b")
    assert len(rest) == 4
    for a, b in zip(rest, whole[4:]):
        assert a["lm_loss"] == pytest.approx(b["lm_loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of 8 steps with checkpoints at 4 and 8."""
    folder = tmp_path_factory.mktemp("saved")
    args = [*MOCK, "--train-iters", "8", "--save-interval", "4", "--save", folder / "c"]
    steps, _ = train(args, 1, folder)
    return folder / "c", steps


def test_finetune_starts_again_with_the_weights(saved, tmp_path):
    path, whole = saved
    # Dropout is 0.1 by default; the independent model has none. It moves these losses by less than 0.02.
    args = [*MOCK, "--train-iters", "4", "--load", path, "--hidden-dropout", "0", "--attention-dropout", "0"]
    steps, _ = train([*args, "--finetune"], 1, tmp_path)
    assert [s["iteration"] for s in steps] == [1, 2, 3, 4]
    assert steps[0]["consumed_samples"] == 4
    # The same first batch, better known than by fresh weights; the learning rate warms up again.
    assert steps[0]["lm_loss"] < whole[0]["lm_loss"] - 0.1
    assert [s["learning_rate"] for s in steps[:3]] == [s["learning_rate"] for s in whole[:3]]
    # The loss of the saved weights by an independent model.
    pytest.importorskip("jax")
    import reference_model

    params, batch = step_numbers(args, tmp_path)
    cfg = {"num_layers": 2, "num_attention_heads": 4, "vocab_size": 61}
    loss, _ = reference_model.step(cfg, params, batch["tokens"], batch["targets"], batch["loss_mask"])
    assert steps[0]["lm_loss"] == pytest.approx(loss, rel=3e-7)  # a mean of float32 losses


def test_without_optimizer_state(saved, tmp_path):
    path, whole = saved
    args = [*MOCK, "--train-iters", "8", "--load", path, "--ckpt-step", "4"]
    steps, _ = train([*args, "--no-load-optim"], 1, tmp_path)
    assert steps[0]["lm_loss"] == whole[4]["lm_loss"]  # the weights are the same
    assert steps[-1]["lm_loss"] != whole[-1]["lm_loss"]  # the moments are not


def test_saved_without_optimizer_state(tmp_path):
    run(["train", *MOCK, "--train-iters", "4", "--save", tmp_path / "c", "--no-save-optim"])
    done = run(["train", *MOCK, "--train-iters", "6", "--load", tmp_path / "c"], expect=2)
    assert "--no-save-optim" in done.stderr and "--no-load-optim" in done.stderr
    steps, _ = train([*MOCK, "--train-iters", "6", "--load", tmp_path / "c", "--no-load-optim"], 1, tmp_path)
    assert [s["iteration"] for s in steps] == [5, 6]


# Flags under which every tensor that the model wants is in the checkpoint, with the right shape.
OTHER_MODELS = ["--num-layers 1", "--num-attention-heads 2", "--disable-bias-linear", "--squared-relu",
                "--norm-epsilon 1e-3", "--window-size 4 0", "--apply-layernorm-1p"]  # fmt: skip


@pytest.mark.parametrize("flags", OTHER_MODELS)
def test_another_model_is_not_taken_for_the_same(flags, saved, tmp_path):
    path, _ = saved
    args = ["train", *MOCK, *flags.split(), "--train-iters", "9", "--load", path]
    done = run(args, expect=2)
    flag, *value = flags.split()
    assert f"{flag} {' '.join(value) or 'true'}".replace("1e-3", "0.001") in done.stderr
    assert "--use-checkpoint-args" in done.stderr
    assert "the model differs" in run([*args, "--finetune"]).stderr
    assert "the model differs" not in run([*args, "--use-checkpoint-args"]).stderr


def test_a_complete_run_says_that_nothing_is_left(saved):
    path, _ = saved
    done = run(["train", *MOCK, "--train-iters", "8", "--load", path])
    assert "nothing to train" in done.stderr and "--train-iters" in done.stderr


def test_load_if_exists(saved, tmp_path):
    path, _ = saved
    steps, _ = train([*MOCK, "--train-iters", "9", "--load", path, "--load-if-exists"], 1, tmp_path)
    assert [s["iteration"] for s in steps] == [9]
    steps, _ = train([*MOCK, "--train-iters", "4", "--load", tmp_path / "none", "--load-if-exists"], 1, tmp_path)
    assert [s["iteration"] for s in steps] == [1, 2, 3, 4]
    run(["train", *MOCK, "--train-iters", "4", "--load", tmp_path / "none"], expect=2)


def test_shape_from_the_checkpoint(saved, tmp_path):
    path, whole = saved
    args = "--micro-batch-size 1 --global-batch-size 4 --lr 2e-3 --lr-decay-style cosine --lr-warmup-iters 3".split()
    args += ["--mock-data", "--train-iters", "8", "--load", path, "--ckpt-step", "4", "--use-checkpoint-args"]
    steps, _ = train(args, 1, tmp_path)
    assert losses(steps) == losses(whole)[4:]


@pytest.mark.parametrize("ranks", [1, 2])
def test_exit_interval_saves_and_says_75(ranks, tmp_path):
    """The same command, again and again, ends as the run that was never stopped."""
    path = tmp_path / "c"
    args = [*MOCK, *DROPOUT, "--train-iters", "8", "--num-threads", "1"]
    whole, _ = train(args, ranks, tmp_path, "whole")
    stopped = [*args, "--exit-interval", "3", "--save", path, "--load", path, "--load-if-exists"]
    steps = []
    for status, last in ((75, 3), (75, 6), (0, 8)):
        run(["train", *stopped, "--metrics-file", tmp_path / f"{last}.jsonl"], ranks, expect=status)
        steps += metrics(tmp_path / f"{last}.jsonl")
        assert steps[-1]["iteration"] == last
        assert (path / "latest_checkpointed_iteration.txt").read_text().split() == [str(last)]
    assert losses(steps) == losses(whole)


def test_exit_duration_saves_and_says_75(tmp_path):
    args = [*MOCK, "--train-iters", "1000000", "--exit-duration-in-mins", "0.005", "--save", tmp_path / "c"]
    run(["train", *args, "--metrics-file", tmp_path / "m.jsonl"], 2, expect=75)
    last = metrics(tmp_path / "m.jsonl")[-1]["iteration"]
    assert (tmp_path / "c" / "latest_checkpointed_iteration.txt").read_text().split() == [str(last)]


# Long enough that the text is words: a model that has learned nothing but the space would pass any comparison.
LEARNING = "--train-iters 200 --lr 1e-2 --global-batch-size 8 --eval-interval 200 --full-validation --split 8,2".split()


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    """A dataset of bytes and a model trained on it with TP=2 x PP=2, evaluated at the end on the validation share."""
    folder = tmp_path_factory.mktemp("text")
    words = "and the light was good and the darkness was upon the face of the deep waters of the earth".split()
    text = " ".join(words[i * i * 7 % len(words)] + ("." if i % 11 == 0 else "") for i in range(4000))
    (folder / "t.txt").write_text(text)
    run(["prepare", "--input", folder / "t.txt", "--output-prefix", folder / "t", "--append-eod"])
    args = [*MODEL, *LEARNING, "--data-path", folder / "t", "--save", folder / "c", "--tp", "2", "--pp", "2"]
    _, evals = train(args, 4, folder)
    return folder, evals[-1]["valid_loss"]


@pytest.mark.parametrize(
    "ranks, flags",
    [
        (1, []),
        (1, ["--micro-batch-size", "4"]),
        (4, ["--tp", "2", "--pp", "2"]),
        (2, []),
        (3, ["--global-batch-size", "6"]),
    ],
    ids=["one rank", "micro-batches of 4", "tp2 pp2", "dp2", "dp3"],
)
def test_eval_equals_validation(ranks, flags, text_run):
    """All windows count once on any layout, though they fill neither the replicas nor the micro-batches."""
    folder, valid_loss = text_run
    args = ["eval", "--load", folder / "c", "--data-path", folder / "t", "--split", "8,2"]
    done = run([*args, "--micro-batch-size", "1", "--global-batch-size", "4", *flags], ranks)
    loss, tokens = re.search(r"loss ([0-9.]+) .* over (\d+) tokens", done.stdout).groups()
    assert float(loss) == pytest.approx(valid_loss, abs=2e-6)  # six digits are printed
    windows = int(tokens) // 16
    assert int(tokens) % 16 == 0 and windows > 200 and windows % 2 == windows % 3 == 1


def generate(folder, args, ranks=1):
    return run(["generate", "--load", folder / "c", "--max-new-tokens", "24", *args], ranks).stdout


def test_greedy_text_is_the_same_on_any_layout(text_run):
    folder, _ = text_run
    args = ["--prompt", "and the l", "--greedy"]
    text = generate(folder, args)
    assert text.startswith("and the l") and len(set(text[9:])) > 5
    assert generate(folder, [*args, "--tp", "2"], 2) == text
    assert generate(folder, [*args, "--pp", "2"], 2) == text
    assert generate(folder, [*args, "--tp", "2", "--pp", "2"], 4) == text


def test_sampled_text_is_reproducible(text_run):
    folder, _ = text_run
    args = ["--prompt", "and the ", "--temperature", "1.0"]
    text = generate(folder, [*args, "--sampling-seed", "3"])
    assert generate(folder, [*args, "--sampling-seed", "3"]) == text
    assert generate(folder, [*args, "--sampling-seed", "3", "--pp", "2"], 2) == text
    assert generate(folder, [*args, "--sampling-seed", "4"]) != text


def assert_likeliest(text, prompt, params, cfg):
    """Each byte of text after the prompt is what an independent model (JAX) finds likeliest after the 16 before it."""
    import reference_model

    text = text.removesuffix("\n").encode()
    assert text.isascii() and len(text) >= 16  # other bytes do not survive the reading of the output
    assert len(set(text[len(prompt) :])) > 5
    places = np.arange(len(prompt), len(text))
    # Windows of one length, for one pass; where fewer bytes come before, the later ones have no say (causal).
    starts = np.maximum(places - 16, 0)
    seen = np.stack([np.frombuffer(text[start : start + 16], np.uint8) for start in starts]).astype(np.int32)
    scores = np.asarray(reference_model.logits(params, seen, reference_model.complete(cfg, params)))
    for at, row in zip(places, scores[np.arange(len(places)), places - starts - 1]):
        # Two scores closer than the rounding of float32 may come out either way.
        assert row[text[at]] >= row.max() - 1e-4, at


def test_greedy_text_is_the_likeliest(text_run, tmp_path):
    pytest.importorskip("jax")
    folder, _ = text_run
    data = ["--train-iters", "30", "--data-path", folder / "t", "--load", folder / "c"]
    params, _ = step_numbers([*MODEL, *data], tmp_path)
    cfg = {"num_layers": 2, "num_attention_heads": 4, "vocab_size": 257}
    for prompt in ("and the l", "and the darkness"):  # both texts outgrow --seq-length 16
        text = generate(folder, ["--prompt", prompt, "--greedy"])
        assert_likeliest(text, prompt, params, cfg)
        # The comparison sees the model: one that looks back less far says something else.
        with pytest.raises(AssertionError):
            assert_likeliest(text, prompt, params, {**cfg, "window_size": 3})


def test_llama_trained_in_parallel_is_evaluated_and_continued_anywhere(text_run, tmp_path):
    """Rotary positions count from the window's first token; with TP 4 each of two KV heads is held twice."""
    pytest.importorskip("jax")
    data = ["--data-path", text_run[0] / "t"]
    args = [*MODEL, *LLAMA, *LEARNING, *data, "--untie-embeddings-and-output-weights", "--tp", "4"]
    _, evals = train([*args, "--save", tmp_path / "c"], 4, tmp_path)
    prompt = "and the l"
    texts = set()
    for ranks, flags in ((1, []), (2, ["--pp", "2"]), (4, ["--tp", "4"])):
        line = ["eval", "--load", tmp_path / "c", *data, "--split", "8,2", "--micro-batch-size", "1", *flags]
        loss = re.search(r"loss ([0-9.]+) ", run(line, ranks).stdout).group(1)
        assert float(loss) == pytest.approx(evals[-1]["valid_loss"], abs=2e-6)
        texts.add(generate(tmp_path, ["--prompt", prompt, "--greedy", *flags], ranks))
    assert len(texts) == 1
    load = ["--load", tmp_path / "c", "--untie-embeddings-and-output-weights", "--train-iters", "30"]
    params, _ = step_numbers([*MODEL, *LLAMA, *data, *load], tmp_path)
    cfg = {"num_layers": 2, "num_attention_heads": 4, "num_query_groups": 2, "vocab_size": 257, "rope": {},
           "normalization": "RMSNorm", "activation": "swiglu"}  # fmt: skip
    assert_likeliest(texts.pop(), prompt, params, cfg)


def test_prompts(text_run, tmp_path):
    folder, _ = text_run
    (tmp_path / "p.txt").write_text("and\n\nthe light\n")
    both = generate(folder, ["--prompts", tmp_path / "p.txt", "--greedy"])
    assert both == "".join(generate(folder, ["--prompt", p, "--greedy"]) for p in ("and", "the light"))
    assert generate(folder, ["--prompts", tmp_path / "p.txt", "--greedy", "--pp", "2"], 2) == both
    # Each line draws its own numbers, the same on any layout.
    (tmp_path / "p.txt").write_text("and\nand\n")
    drawn = generate(folder, ["--prompts", tmp_path / "p.txt"])
    half = len(drawn) // 2
    assert drawn.startswith("and") and drawn[:half] != drawn[half:]
    assert generate(folder, ["--prompts", tmp_path / "p.txt", "--tp", "2"], 2) == drawn
    run(["generate", "--load", folder / "c", "--prompts", tmp_path / "none"], expect=2)


def test_without_a_prompt_a_document_begins(text_run):
    folder, _ = text_run
    text = generate(folder, ["--greedy"])
    assert text == generate(folder, ["--greedy", "--tp", "2", "--pp", "2"], 4) and len(text) > 1
    run(["generate", "--load", folder / "c", "--prompt", ""], expect=2)


def test_a_text_longer_than_the_window(text_run):
    """A prompt must fit into --seq-length 16; of a text that outgrows it, what lies before the window has no say."""
    folder, _ = text_run
    text = generate(folder, ["--prompt", "and the l", "--greedy"]).removesuffix("\n")
    assert len(text) > 30 and len(set(text[16:])) > 5
    rest = generate(folder, ["--prompt", text[4:20], "--greedy"])
    assert rest[:24] == text[4:28] and rest.startswith(text[4:])
    for ranks in (1, 2):
        done = run(["generate", "--load", folder / "c", "--prompt", text[:17]], ranks, expect=2)
        errors = [line for line in done.stderr.splitlines() if "megac: error" in line]
        assert len(errors) == 1 and "17 tokens" in errors[0] and "--seq-length 16" in errors[0]


def test_inspect_a_checkpoint(saved):
    path, _ = saved
    report = json.loads(run(["inspect", path, "--json", "--verify"]).stdout)
    assert report["iteration"] == 8


def test_evaluation_on_ranks_that_the_training_batch_does_not_fit(saved):
    """A global batch of 4 on three replicas: evaluated in batches of 3."""
    path, _ = saved
    args = ["eval", "--load", path, "--mock-data", "--global-batch-size", "4", "--num-threads", "1"]
    three = run([*args, "--eval-iters", "4"], 3).stdout
    one = run([*args[:4], "--global-batch-size", "3", "--num-threads", "1", "--eval-iters", "4"]).stdout
    number = re.compile(r"loss ([0-9.]+) .* over (\d+) tokens")
    assert number.search(three).groups() == number.search(one).groups()
    assert number.search(one).group(2) == str(3 * 4 * 16)


@pytest.mark.parametrize("ranks, flags", [(1, []), (4, "--tp 2 --pp 2 --zero 0".split()), (2, ["--zero", "3"])])
def test_loading_takes_no_more_memory(ranks, flags, tmp_path):
    """A run of one rank that goes on from a checkpoint of 84 MB, of its own layout or of another: a piece at a time."""
    args = (
        "--num-layers 4 --hidden-size 256 --num-attention-heads 4 --seq-length 16 --micro-batch-size 1 --global-batch-size 2 "
        "--lr 1e-3 --lr-decay-iters 4 --mock-data --vocab-size 16384 --num-threads 1"
    ).split()
    run(["train", *args, *flags, "--train-iters", 1, "--save", tmp_path], ranks)
    assert sum(f.stat().st_size for f in tmp_path.rglob("*.safetensors")) > 80e6
    fresh = peak_bytes(["train", *args, "--train-iters", 1])
    assert peak_bytes(["train", *args, "--train-iters", 2, "--load", tmp_path]) < fresh + 4e6

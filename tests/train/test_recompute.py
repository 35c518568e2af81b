"""Activations computed again: less memory, the same bits."""

import json
import re

import pytest
from megac_runs import run, train
from test_layouts import COMMON, DROPOUT, MODELS
from test_resume import losses

ARGS = [*COMMON, *DROPOUT["dropout"], "--train-iters", "5", "--eval-interval", "2", "--eval-iters", "1"]
SETTINGS = {
    "full": "--recompute-granularity full",
    "full uniform 3": "--recompute-granularity full --recompute-method uniform --recompute-num-layers 3",
    "full block 3": "--recompute-granularity full --recompute-method block --recompute-num-layers 3",
    "selective": "--recompute-activations",
    "selective, all": "--recompute-granularity selective --recompute-modules core_attn mlp layernorm",
}
LAYOUTS = {
    "one rank": (1, "--micro-batch-size 2"),
    "tp2 pp2 dp2 sp": (8, "--micro-batch-size 1 --tp 2 --pp 2 --sequence-parallel"),
    "pp2 gpipe, zero 3": (4, "--micro-batch-size 2 --pp 2 --pipeline-schedule gpipe --zero 3"),
    "dp2, zero 3, 7 blocks": (2, "--micro-batch-size 2 --zero 3 --num-layers 7"),  # groups of 3 blocks, two buffers
}


@pytest.mark.parametrize(
    "model, layout",
    [("gpt", "one rank"), ("llama-tied", "one rank"), ("llama-tied", "tp2 pp2 dp2 sp"), ("gpt", "pp2 gpipe, zero 3"),
     ("llama-tied", "dp2, zero 3, 7 blocks")],
)
def test_every_setting_is_the_same_run(model, layout, tmp_path):
    ranks, flags = LAYOUTS[layout]
    args = [*ARGS, *MODELS[model], *flags.split()]
    want, want_evals = train(args, ranks, tmp_path)
    for name, setting in SETTINGS.items():
        got, evals = train([*args, *setting.split()], ranks, tmp_path)
        assert losses(got) == losses(want), name
        assert [e["valid_loss"] for e in evals] == [e["valid_loss"] for e in want_evals], name


@pytest.mark.parametrize("more", ["", "--recompute-num-layers 2", "--recompute-method block --recompute-num-layers 3"])
def test_ranks_may_keep_a_part_each(more, tmp_path):
    args = [*ARGS, "--tp", "2", "--micro-batch-size", "2"]
    want, _ = train(args, 2, tmp_path)
    got, _ = train(
        [*args, "--recompute-granularity", "full", "--distribute-saved-activations", *more.split()], 2, tmp_path
    )
    assert losses(got) == losses(want)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_trace_is_the_same(setting, tmp_path):
    """What is computed again is not traced again."""
    args = [*ARGS, *MODELS["gpt"], "--micro-batch-size", "4"]
    for folder, flags in [("a", []), ("b", SETTINGS[setting].split())]:
        train([*args, *flags, "--trace-tensors", tmp_path / folder], 1, tmp_path)
    done = run(["diff", tmp_path / "a", tmp_path / "b", "--tolerance", "0"])
    assert done.stdout.startswith("0 of ") and "only in" not in done.stdout
    files = [[len(f.read_text().splitlines()) for f in (tmp_path / d).glob("rank_*.jsonl")] for d in "ab"]
    assert files[0] == files[1] and sum(files[0]) > 100


# Forward passes over products (gemm) and attention that a backward of 4 blocks repeats. A block that is computed again
# needs no last product unless the next one of its group reads its output; what the forward left last is there yet.
AGAIN = {
    "": (0, 0),
    "--recompute-granularity full": (3 * 3, 3),
    "--recompute-granularity full --recompute-num-layers 2": (4 + 3, 2),
    "--recompute-granularity full --recompute-num-layers 4": (0, 0),
    "--recompute-granularity full --recompute-method block --recompute-num-layers 3": (2 * 3, 2),
    "--recompute-granularity selective --recompute-modules mlp": (3, 0),
    "--recompute-activations": (0, 3),
}


def test_no_more_is_computed_again_than_must_be():
    def calls(flags):
        shape = [*COMMON, "--micro-batch-size", "4", "--eval-iters", "0", "--train-iters", "5", "--log-operators"]
        table = run(["train", *shape, "--num-threads", 1, *flags.split()]).stdout
        return [int(re.search(rf"^{op} +\S+ +(\d+) ", table, re.M)[1]) for op in ("gemm", "attention_fwd")]

    backwards = 3 * 2  # steps that are counted, micro-batches of each
    plain = calls("")
    for flags, (products, attentions) in AGAIN.items():
        assert calls(flags) == [plain[0] + backwards * products, plain[1] + backwards * attentions], flags


def test_the_first_step_allocates_all_and_the_plan_knows_it():
    for setting in SETTINGS.values():
        args = [*ARGS, "--micro-batch-size", "2", "--pp", "2", *setting.split()]
        done = run(["train", *args, "--num-threads", 1], 2)
        rank0 = json.loads(run(["plan", *args, "--num-threads", 1, "--world-size", 2, "--json"]).stdout)["ranks"][0]
        assert f"rank 0 reserves {rank0['total'] / 2**20:.1f} MiB" in done.stdout
        assert "allocations after the first step" not in done.stderr


# Activations of a block of s b rows, in floats: h_in, h_mid, attn of h; qkv of 3 h; fc1 of 4 h; two norms' mean and
# deviation; the softmax's logarithm a row and head.
H, HEADS, ROWS, LAYERS = 256, 8, 2 * 64, 12
KEPT = {"h_in": H, "stats": 4, "qkv": 3 * H, "attn": H, "lse": HEADS, "h_mid": H, "fc1": 4 * H}
BLOCK = sum(KEPT.values()) - KEPT["h_in"]  # what a block stashes besides its input
SAVES = {  # floats a row that are no longer there
    "--recompute-granularity full": (LAYERS - 1) * BLOCK,
    "--recompute-granularity full --recompute-num-layers 4": (LAYERS - 4) * BLOCK + (LAYERS - LAYERS // 4 - 3) * H,
    "--recompute-granularity full --recompute-method block --recompute-num-layers 5": 4 * BLOCK,
    "--recompute-activations": (LAYERS - 1) * (KEPT["attn"] + KEPT["lse"]),
    "--recompute-granularity selective --recompute-modules mlp": (LAYERS - 1) * KEPT["fc1"],
}


@pytest.mark.parametrize("setting", SAVES)
def test_memory_shrinks_by_what_is_not_kept(setting):
    shape = f"--num-layers {LAYERS} --hidden-size {H} --num-attention-heads {HEADS} --seq-length 64 --micro-batch-size 2"
    args = [*shape.split(), *"--mock-data --vocab-size 512 --train-iters 1 --lr 1e-3 --world-size 1 --json".split()]
    plan = lambda *flags: json.loads(run(["plan", *args, *flags]).stdout)["ranks"][0]["activations"]
    saved = plan() - plan(*setting.split())
    assert saved == pytest.approx(4 * ROWS * SAVES[setting], rel=2e-3)  # tensors are aligned


def test_contradictions():
    bad = {
        "--recompute-num-layers 2": "--recompute-num-layers",
        "--recompute-modules mlp": "--recompute-modules",
        "--recompute-activations --recompute-granularity full": "--recompute-activations",
        "--recompute-granularity selective --recompute-method block": "--recompute-method",
        "--recompute-granularity selective --recompute-modules moe": "moe",
        "--recompute-granularity full --distribute-saved-activations": "--tensor-model-parallel-size 1",
        "--recompute-granularity full --distribute-saved-activations --tp 2 --sequence-parallel": "--sequence-parallel",
    }
    for flags, says in bad.items():
        done = run(["plan", *COMMON, "--micro-batch-size", "1", *flags.split()], expect=2)
        assert says in done.stderr and len(done.stderr.splitlines()) == 1, flags

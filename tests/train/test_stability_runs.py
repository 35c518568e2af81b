"""Steps that must not be trained on: what is found, and that each policy does what it says, on every rank."""
import statistics

import pytest
from megac_runs import run, train

SMALL = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32 "
    "--micro-batch-size 1 --global-batch-size 8 --vocab-size 97 --mock-data --train-iters 12 --lr 5e-3 "
    "--hidden-dropout 0.1 --attention-dropout 0.1"
).split()
DP2 = [*SMALL, "--dp", "2"]
KEYS = ("iteration", "lm_loss", "grad_norm", "learning_rate", "consumed_samples")


def numbers(steps, first=1):
    return [[s[k] for k in KEYS] for s in steps if s["iteration"] >= first]


def without(args, iterations, ranks, tmp_path):
    """The run in which these steps are left out."""
    return train([*args, "--iterations-to-skip", *iterations], ranks, tmp_path, "without")[0]


@pytest.fixture
def nan_at(monkeypatch):
    """NaN in one micro-batch of one rank, by the program's variable for tests (megac/train/README.md)."""
    return lambda step, rank, micro: monkeypatch.setenv("MEGAC_TEST_NAN", f"{step}:{rank}:{micro}")


@pytest.mark.parametrize("ranks, layout", [(2, ""), (4, "--pp 2"), (4, "--tp 2"), (2, "--zero 2")])
def test_nan_of_one_micro_batch_is_skipped_on_all_ranks(ranks, layout, nan_at, tmp_path):
    args = [*DP2, *layout.split()]
    want = without(args, [4], ranks, tmp_path)
    nan_at(4, 1, 3)
    have, _ = train(args, ranks, tmp_path)
    assert [s["iteration"] for s in have if s["skipped"]] == [4]
    assert have[3]["finding"] == "not finite" and have[3]["decision"] == "skip"
    assert numbers(have, 5) == numbers(want, 5) and numbers(have)[:3] == numbers(want)[:3]


@pytest.mark.parametrize("saves", [[], ["--async-save"]], ids=["foreground", "behind"])
def test_rewind_takes_back_the_steps_since_the_checkpoint(saves, nan_at, tmp_path):
    want = without(DP2, [5, 6, 7], 2, tmp_path)
    nan_at(7, 0, 1)
    policy = ["--nan-policy", "rewind", "--save", tmp_path / "ck", "--save-interval", 4, *saves]
    have, _ = train([*DP2, *policy], 2, tmp_path)
    assert [s["iteration"] for s in have if s["skipped"]] == [7]
    assert have[6]["decision"] == "rewind"
    assert numbers(have, 8) == numbers(want, 8)


def test_rewind_without_a_checkpoint_yet_skips_and_says_so(nan_at, tmp_path):
    want = without(DP2, [2], 2, tmp_path)
    nan_at(2, 0, 1)
    args = [*DP2, "--nan-policy", "rewind", "--save", tmp_path / "ck", "--save-interval", 50]
    done = run(["train", *args, "--num-threads", 1, "--metrics-file", tmp_path / "m.jsonl"], 2)
    assert "step 2: " in done.stderr and "no checkpoint yet" in done.stderr
    have, _ = train([*args[:-1], "60"], 2, tmp_path)
    assert have[1]["decision"] == "skip" and numbers(have, 3) == numbers(want, 3)


def test_stop_saves_the_state_before_the_step(nan_at, monkeypatch, tmp_path):
    want = without(DP2, [6], 2, tmp_path)
    nan_at(6, 1, 2)
    save = ["--save", tmp_path / "ck"]
    done = run(["train", *DP2, "--nan-policy", "stop", *save, "--num-threads", 1], 2, expect=1)
    assert "step 6: " in done.stderr and "--iterations-to-skip 6" in done.stderr
    monkeypatch.delenv("MEGAC_TEST_NAN")
    have, _ = train([*DP2, "--load", tmp_path / "ck", "--iterations-to-skip", 6], 2, tmp_path)
    assert [s["iteration"] for s in have] == list(range(6, 13))
    assert numbers(have, 7) == numbers(want, 7)


RULES = {
    "--check-for-spiky-loss --spike-factor 1.004 --spike-window 3": lambda s, l, n: s["lm_loss"] > 1.004 * statistics.mean(l),
    "--check-for-large-grads --spike-factor 1.05 --spike-window 3": lambda s, l, n: s["grad_norm"] > 1.05 * statistics.mean(n),
    "--lr 1e-5 --loss-z-score 1.2 --spike-window 4": lambda s, l, n: s["lm_loss"] - statistics.mean(l) > 1.2 * statistics.pstdev(l),
    "--grad-norm-limit 1.02": lambda s, l, n: s["grad_norm"] > 1.02,
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_what_is_found_is_left_out(rule, tmp_path):
    """Every step is judged as the rule says, and the run is the one in which the steps found are left out."""
    args = [*SMALL, "--train-iters", 20, *rule.split()]
    have, _ = train(args, 1, tmp_path)
    window = int(rule.split()[-1]) if "window" in rule else 0
    losses, norms, found = [], [], []
    for s in have:
        last = losses[-window:], norms[-window:]
        spike = len(losses) >= window and RULES[rule](s, *last)
        assert s["skipped"] == spike, s
        if spike:
            found.append(s["iteration"])
        else:
            losses.append(s["lm_loss"])
            norms.append(s["grad_norm"])
    assert 0 < len(found) < 15
    want = without(args, found, 1, tmp_path)
    kept = [s["iteration"] for s in have if not s["skipped"]]
    assert [n for n in numbers(have) if n[0] in kept] == [n for n in numbers(want) if n[0] in kept]
    # Statistics come back with a checkpoint.
    save = ["--save", tmp_path / "ck", "--exit-interval", 9]
    run(["train", *args, *save, "--num-threads", 1], expect=75)
    rest, _ = train([*args, "--load", tmp_path / "ck"], 1, tmp_path, "rest")
    assert [s["skipped"] for s in rest] == [s["skipped"] for s in have[9:]]
    assert numbers(rest) == numbers(have, 10)


def test_rewind_needs_something_to_go_back_to():
    for flags, named in [([], "--save"), (["--save", "x", "--save-interval", 2, "--no-save-optim"], "--no-save-optim")]:
        done = run(["train", *SMALL, "--spike-policy", "rewind", *flags], expect=2)
        assert named in done.stderr and "--spike-policy rewind" in done.stderr

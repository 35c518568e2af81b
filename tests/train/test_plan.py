"""megac plan on questions that users come with, and the estimates that it prints beside its bytes."""

import json

import pytest
from megac_runs import run

LLAMA = (
    "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear "
    "--untie-embeddings-and-output-weights --vocab-size 32000 --mock-data --bf16 --device cuda"
).split()
B7 = [*LLAMA, *"--num-layers 32 --hidden-size 4096 --num-attention-heads 32 --ffn-hidden-size 11008 --seq-length 2048".split()]
B70 = [
    *LLAMA,
    *"--num-layers 80 --hidden-size 8192 --num-attention-heads 64 --ffn-hidden-size 28672 --seq-length 4096".split(),
    *"--group-query-attention --num-query-groups 8 --tp 4 --pp 2 --dp 8 --sequence-parallel".split(),
    *"--micro-batch-size 1 --global-batch-size 64".split(),
]
# Question, flags, whether 80 GB are enough.
QUESTIONS = [
    ("A: 7B on 8 devices, replicated", [*B7, "--micro-batch-size", "1", "--dp", "8"], False),
    ("A: 7B on 8 devices, ZeRO 1", [*B7, "--micro-batch-size", "1", "--dp", "8", "--zero", "1"], True),
    ("B: 70B on 64 devices, ZeRO 1", [*B70, "--zero", "1"], False),
    ("B: ... and full recomputation", [*B70, "--zero", "1", "--recompute-granularity", "full"], True),
    ("C: 7B at 2 x 8192 tokens", [*B7, "--seq-length", "8192", "--micro-batch-size", "2", "--dp", "8", "--zero", "1"], False),
    (
        "C: ... and full recomputation",
        [*B7, "--seq-length", "8192", "--micro-batch-size", "2", "--dp", "8", "--zero", "1", "--recompute-granularity", "full"],
        True,
    ),
]


@pytest.mark.parametrize("name, flags, fits", QUESTIONS, ids=[q[0] for q in QUESTIONS])
def test_does_it_fit(name, flags, fits):
    done = run(["plan", *flags, "--fits", "80GB", "--json"], expect=0 if fits else 1)
    plan = json.loads(done.stdout)
    assert (plan["largest_device_bytes"] <= 80e9) == fits
    worst = next(r for r in plan["ranks"] if r["rank"] == plan["largest_rank"])
    assert plan["largest_device_bytes"] == worst["total"] - worst["pinned"] - worst["host"]
    assert plan["largest_device_bytes"] == max(r["total"] - r["pinned"] - r["host"] for r in plan["ranks"])
    if not fits:
        assert f"rank {plan['largest_rank']} needs" in done.stderr and len(done.stderr.splitlines()) == 1


def test_sizes():
    flags = [*B7, "--micro-batch-size", "1", "--dp", "8", "--zero", "1"]
    need = json.loads(run(["plan", *flags, "--json"]).stdout)["largest_device_bytes"]
    run(["plan", *flags, "--fits", f"{need / 2**30 + 0.001:.3f}GiB"])
    run(["plan", *flags, "--fits", f"{need / 2**30 - 0.001:.3f}GiB"], expect=1)
    run(["plan", *flags, "--fits", f"{need / 1e6 + 0.1:.1f}MB"])
    for bad in ("80", "GB", "-3GB", "80Gb", "80XB", "80GBs"):
        assert f"--fits {bad}" in run(["plan", *flags, f"--fits={bad}"], expect=2).stderr


def estimates(*flags):
    plan = json.loads(run(["plan", *B7, "--json", *map(str, flags)]).stdout)
    return plan["parameters"], {e["name"]: e["bytes"] for e in plan["estimates"]}


def test_rules_of_thumb():
    """For 7e9 parameters, batch 4 and 2048 tokens they are known as 105.5 GB and 126 GB."""
    n, e = estimates("--micro-batch-size", 4)
    rest = e["rule of thumb 2 + 2 + 8, one device"] - 12 * n
    assert 12 * 7e9 + rest == pytest.approx(105.5e9, rel=1e-3)
    assert e["rule of thumb 2 + 12 + 4, one device"] / n * 7e9 == pytest.approx(126e9)


def test_formulas_of_states():
    for dp, zero, want in [(8, 0, 16), (8, 1, 4 + 12 / 8), (8, 2, 2 + 14 / 8), (8, 3, 2)]:
        n, e = estimates("--micro-batch-size", 1, "--dp", dp, "--zero", zero)
        assert e["ZeRO states (Rajbhandari et al. 2020)"] == pytest.approx(want * n)
        fp32_sums = 4 / (dp if zero > 0 else 1)
        assert e["ZeRO states with fp32 gradient sums"] == pytest.approx((want + fp32_sums) * n)
        assert e["Megatron-LM states"] == pytest.approx((18 if zero == 0 else 6 + 12 / dp) * n)
    n, e = estimates("--micro-batch-size", 1, "--tp", 2, "--pp", 2)
    assert e["ZeRO states (Rajbhandari et al. 2020)"] == pytest.approx(16 * n / 4)


def test_formulas_of_activations():
    s, b, h, a, layers = 2048, 3, 4096, 32, 32
    name = "activations (Korthikanti et al. 2022)"
    for flags, t, want in [
        ("", 1, 34 + 5 * a * s / h),
        ("--tp 4", 4, 10 + 24 / 4 + 5 * a * s / h / 4),
        ("--tp 4 --sequence-parallel", 4, 34 / 4 + 5 * a * s / h / 4),
        ("--tp 4 --sequence-parallel --recompute-activations", 4, 34 / 4),
        ("--tp 4 --recompute-activations", 4, 10 + 24 / 4),
        ("--recompute-granularity full", 1, 2),
        ("--tp 4 --sequence-parallel --recompute-granularity full", 4, 2 / 4),
        ("--tp 4 --recompute-granularity full --distribute-saved-activations", 4, 2 / 4),
        ("--recompute-granularity full --recompute-num-layers 4", 1, 2 / 4),
        # 4 layers of each of 2 stages have their input only: 8 of 32.
        (
            "--pp 2 --recompute-granularity full --recompute-method block --recompute-num-layers 4",
            1,
            (8 * 2 + 24 * (34 + 5 * a * s / h)) / 32,
        ),
    ]:
        _, e = estimates("--micro-batch-size", b, *flags.split())
        assert e[name] == pytest.approx(s * b * h * layers * want), flags
        assert e["activations (Megatron-LM's report)"] == pytest.approx(s * b * layers * (18 * h + 4 * 11008) / t), flags

"""The training step on the CUDA backend, executed without a GPU: same bits under every order that CUDA permits, and the
numbers of the CPU run within rounding."""
import json
import re

import cuda_runs
import pytest
from cuda_runs import POLICIES, needs_standins, standins_only
from megac_runs import run as run_cpu
from megac_runs import train as train_cpu

pytestmark = needs_standins

SHAPE = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32 "
    "--micro-batch-size 1 --global-batch-size 8 --vocab-size 301 --train-iters 3 --lr 1e-3 --lr-decay-style constant "
    "--mock-data"
).split()
GPT = [*SHAPE, "--hidden-dropout", "0.1", "--attention-dropout", "0.1"]
LLAMA = [
    *SHAPE,
    *(
        "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear "
        "--untie-embeddings-and-output-weights --group-query-attention --num-query-groups 2 "
        "--hidden-dropout 0 --attention-dropout 0"
    ).split(),
]
EIGHT = "--tp 2 --pp 2 --dp 2 --sequence-parallel".split()
TP2_PP2 = "--tp 2 --pp 2".split()


def cpu(flags, ranks, tmp_path, name="cpu"):
    steps, _ = train_cpu(flags, ranks, tmp_path, name)
    return [(s["lm_loss"], s["grad_norm"]) for s in steps]


def close(have, want, tolerance):
    return all(h == pytest.approx(w, rel=tolerance) for a, b in zip(have, want, strict=True) for h, w in zip(a, b, strict=True))


@pytest.mark.parametrize("precision", [[], ["--bf16"]], ids=["fp32", "bf16"])
@pytest.mark.parametrize("model", [GPT, LLAMA], ids=["gpt", "llama"])
def test_eight_ranks_under_all_policies(model, precision, tmp_path):
    # The second step has what the first one's update made; two micro-batches a pipeline are warm-up, steady state and end.
    steps = ["--train-iters", "2", "--global-batch-size", "4"]
    flags = [*model, *precision, *EIGHT, "--device", "cuda", *steps]
    runs = {p: cuda_runs.train(flags, 8, tmp_path / "m.jsonl", policy=p) for p in POLICIES}
    for policy in POLICIES[1:]:
        assert runs[policy] == runs[POLICIES[0]], policy
    if precision:  # what is rounded to 8 bits after a sum in another order may fall on the other side
        one = cuda_runs.train([*model, *precision, "--device", "cuda", *steps], 1, tmp_path / "m.jsonl")
        assert close(runs[POLICIES[0]], one, 2e-3), (runs[POLICIES[0]], one)
    want = cpu([*model, *EIGHT, *steps], 8, tmp_path)
    assert close(runs[POLICIES[0]], want, 1e-2 if precision else 2e-5), (runs[POLICIES[0]], want)


def test_fp16_overflows_where_the_cpu_s_does(tmp_path):
    """The loss scale comes down from where gradients overflow, and doubles into the next overflow."""
    flags = [*SHAPE, "--num-layers", "2", "--train-iters", "8", "--fp16", "--initial-loss-scale", 2**24, "--loss-scale-window", "2"]
    have = cuda_runs.train([*flags, "--device", "cuda"], 1, tmp_path / "m.jsonl", policy="late")
    want = cpu(flags, 1, tmp_path)
    assert [norm is None for _, norm in have] == [norm is None for _, norm in want]
    assert None in have[0] and [norm for _, norm in have if norm]
    for (loss, norm), (want_loss, want_norm) in zip(have, want, strict=True):
        assert loss == pytest.approx(want_loss, rel=2e-3)
        assert norm is None or norm == pytest.approx(want_norm, rel=1e-2)


@pytest.mark.parametrize(
    "ranks, layout",
    [
        (1, []),
        (2, ["--tp", "2"]),
        (2, ["--tp", "2", "--sequence-parallel"]),
        (4, ["--pp", "4"]),
        (2, ["--dp", "2"]),
        (4, ["--tp", "4"]),
        pytest.param(4, ["--tp", "2", "--pp", "2", "--comm", "mpi"], marks=standins_only),
    ],
    ids=lambda v: " ".join(v) or "one" if isinstance(v, list) else str(v),
)
def test_layouts_equal_the_cpu(ranks, layout, tmp_path):
    have = cuda_runs.train([*GPT, *layout, "--device", "cuda"], ranks, tmp_path / "m.jsonl", policy="late")
    assert close(have, cpu(GPT, 1, tmp_path), 2e-5)


def test_tf32_is_the_compute_type_of_fp32_products_only(tmp_path):
    """Without the flag nothing rounds; with it only the type that products ask for differs: a library that ignores the
    wish (STANDIN_TF32=0) gives the bits of the run without."""
    flags = [*GPT, "--num-layers", "2", "--train-iters", "1", "--device", "cuda"]
    plain = cuda_runs.train(flags, 1, tmp_path / "m.jsonl")
    tf32 = cuda_runs.train([*flags, "--allow-tf32"], 1, tmp_path / "m.jsonl")
    assert tf32 != plain and close(tf32, plain, 1e-3)
    if not cuda_runs.NVIDIA:
        assert cuda_runs.train([*flags, "--allow-tf32"], 1, tmp_path / "m.jsonl", tf32=0) == plain
    half = [cuda_runs.train([*flags, "--bf16", *more], 1, tmp_path / "m.jsonl") for more in ([], ["--allow-tf32"])]
    assert half[0] == half[1]
    done = run_cpu(["train", *GPT, "--num-threads", 1, "--device", "cpu", "--allow-tf32"], expect=2)
    assert "--allow-tf32: only tensor cores have TF32" in done.stderr


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_zero_with_16_bit_parameters(zero, tmp_path):
    """The CPU has no operators in 16 bits: what replicas share out is compared with replicas that do not."""
    flags = [*LLAMA, "--bf16", "--dp", "2", "--device", "cuda", "--train-iters", "2"]
    want = cuda_runs.train(flags, 2, tmp_path / "m.jsonl")
    have = cuda_runs.train([*flags, "--zero", zero], 2, tmp_path / "m.jsonl")
    assert close(have, want, 1e-6), (have, want)


def test_tensors_that_are_apart_and_spoiled_by_rewinds(tmp_path):
    """MC_ARENA_SPLIT=1: no kernel or operation between ranks uses what lies beyond its tensors or was given back."""
    flags = [*GPT, "--tp", "2", "--pp", "2", "--sequence-parallel", "--device", "cuda", "--train-iters", "2"]
    want = cuda_runs.train(flags, 4, tmp_path / "m.jsonl")
    assert cuda_runs.train(flags, 4, tmp_path / "m.jsonl", MC_ARENA_SPLIT=1) == want


def test_the_plan_needs_no_device_and_is_what_the_run_reserves():
    flags = [*LLAMA, *EIGHT, "--device", "cuda", "--num-threads", "1", "--train-iters", "1"]
    rank0 = json.loads(run_cpu(["plan", *flags, "--world-size", "8", "--json"]).stdout)["ranks"][0]
    done = cuda_runs.run(["train", *flags], 8)
    reserved = float(re.search(r"rank 0 reserves ([0-9.]+) MiB", done.stdout).group(1))
    assert reserved == pytest.approx(rank0["total"] / 2**20, abs=0.06) and rank0["workspace"] >= 32 << 20


@pytest.mark.skipif(cuda_runs.GPUS > 1, reason="each rank finds a GPU of its own")
def test_more_ranks_than_devices_share_them_over_hosts_only(tmp_path):
    flags = [*GPT, "--dp", "2", "--device", "cuda"]
    have = cuda_runs.train([*flags, "--comm", "tcp" if cuda_runs.NVIDIA else "mpi"], 2, tmp_path / "m.jsonl", devices=1)
    assert close(have, cpu(GPT, 1, tmp_path), 2e-5)
    done = cuda_runs.run(["train", *flags, "--num-threads", 1], 2, expect=2, share=False, devices=1)
    assert "--comm nccl needs a CUDA device for every rank" in done.stderr and "--comm mpi" in done.stderr


def test_every_tensor_of_a_step_equals_the_cpu_s(tmp_path):
    flags = [*LLAMA, "--train-iters", "1"]
    run_cpu(["train", *flags, "--num-threads", 1, "--trace-tensors", tmp_path / "cpu"])
    cuda_runs.run(
        ["train", *flags, "--num-threads", 1, *EIGHT, "--device", "cuda", "--trace-tensors", tmp_path / "cuda"], 8
    )
    done = run_cpu(["diff", tmp_path / "cpu", tmp_path / "cuda", "--tolerance", "5e-5"])
    assert re.search(r"^0 of \d{3} tensors differ", done.stdout, re.M)


def test_checkpoints_cross_devices(tmp_path):
    """Saved from device memory, resumed there and on the CPU: the same steps as without the interruption."""
    flags = [*GPT, "--train-iters", "4"]
    whole = cuda_runs.train([*flags, "--device", "cuda"], 1, tmp_path / "m.jsonl")
    save = ["--save", tmp_path / "ck", "--save-interval", "2"]
    cuda_runs.train([*flags, "--exit-interval", "2", "--device", "cuda", *save], 1, tmp_path / "m.jsonl", expect=75)
    resumed = cuda_runs.train([*flags, "--device", "cuda", "--load", tmp_path / "ck"], 1, tmp_path / "m.jsonl")
    assert resumed == whole[2:]
    assert close(cpu([*flags, "--load", tmp_path / "ck"], 1, tmp_path), whole[2:], 2e-5)
    (tmp_path / "p.txt").write_text("Moses\nI\nand he said\n")
    load = ["--load", tmp_path / "ck", "--tokenizer-type", "ByteTokenizer", "--prompts", tmp_path / "p.txt"]
    load += ["--max-new-tokens", "8", "--greedy", "--num-threads", "1"]
    on_cpu = run_cpu(["generate", *load]).stdout
    assert "Moses" in on_cpu and on_cpu == run_cpu(["generate", *load, "--no-kv-cache"]).stdout
    for ranks, policy, layout in ((1, "late", []), (1, "eager", ["--no-kv-cache"]), (4, "random:1", TP2_PP2)):
        assert cuda_runs.run(["generate", *load, "--device", "cuda", *layout], ranks, policy=policy).stdout == on_cpu


@standins_only
def test_a_rank_that_dies_ends_the_job(tmp_path):
    """NCCL sees a dead rank on its own; megac says where it stood, and no rank hangs."""
    flags = [*GPT, "--train-iters", "200", "--pp", "2", "--device", "cuda", "--num-threads", "1"]
    done = cuda_runs.run(["train", *flags], 2, expect=None, timeout=60, fail="cudaEventRecord:300@1", deadline=5)
    assert done.returncode not in (0, 110), done.stderr  # 110: mpirun's own timeout
    assert "cudaEventRecord" in done.stderr


def test_zero_and_recomputation(tmp_path):
    """Parameters gathered ahead, gradients scattered behind, blocks computed again, checkpoints written from snapshots."""
    shape = [*LLAMA, "--dp", "2", "--micro-batch-size", "2", "--num-layers", "3"]
    flags = [*shape, "--zero", "3", "--recompute-granularity", "full", "--recompute-num-layers", "2"]
    saved = [*flags, "--save", tmp_path / "c", "--save-interval", "1", "--async-save", "--device", "cuda"]
    late, chance = (cuda_runs.train(saved, 2, tmp_path / "m.jsonl", policy=p) for p in ("late", "random:1"))
    assert late == chance
    assert close(late, cpu(shape, 2, tmp_path), 2e-5)
    run_cpu(["inspect", tmp_path / "c", "--verify"])


@pytest.mark.parametrize("flags,tolerance", [("--zero 1 --global-batch-size 4", 2e-5), ("--zero 3 --grad-reduce-in-bf16", 1e-3)])
def test_hybrid_sharding(flags, tolerance, tmp_path):
    """Sums inside instances and across them, each under way while the other is, from buffers that are soon used again."""
    shape = [*LLAMA, "--dp", "4", "--micro-batch-size", "1", "--num-layers", "3", "--train-iters", "2"]
    flags = [*shape, *flags.split(), "--num-distributed-optimizer-instances", "2"]
    late, chance = (
        cuda_runs.train([*flags, "--device", "cuda"], 4, tmp_path / "m.jsonl", policy=p) for p in ("late", "random:1")
    )
    assert late == chance
    assert close(late, cpu(flags, 4, tmp_path), tolerance)


def test_masked_targets(tmp_path):
    """Hosts add what targets weigh; the mock data masks none, so that the step is the one without the flag."""
    flags = [*LLAMA, "--dp", "2", "--train-iters", "2", "--device", "cuda"]
    have, want = (cuda_runs.train([*flags, *more], 2, tmp_path / "m.jsonl") for more in (["--eod-mask-loss"], []))
    assert have == want


def test_eight_bytes_a_parameter(tmp_path):
    """bf16 states, rounded at random: the same words on both devices."""
    types = "--bf16 --main-params-dtype bf16 --main-grads-dtype bf16 --exp-avg-dtype bf16 --exp-avg-sq-dtype bf16".split()
    flags = [*GPT, *types, "--tp", "2", "--num-layers", "2"]
    late, chance = (
        cuda_runs.train([*flags, "--device", "cuda"], 2, tmp_path / "m.jsonl", policy=p) for p in ("late", "random:1")
    )
    assert late == chance
    assert close(late, cpu([*flags, "--device", "cpu"], 2, tmp_path), 1e-2)


@standins_only
@pytest.mark.parametrize("ranks, layout", [(1, "--micro-batch-size 2"), (4, "--dp 2 --pp 2 --micro-batch-size 1")])
def test_graphs_are_the_same_run(ranks, layout, tmp_path):
    """Forward and backward of each micro-batch recorded in the second step, launched from then on; the last backward of a
    step stays as it is where replicas sum in it."""
    flags = [*LLAMA, *layout.split(), "--num-layers", "2", "--train-iters", "3", "--device", "cuda"]
    plain = cuda_runs.train(flags, ranks, tmp_path / "m.jsonl")
    assert cuda_runs.train([*flags, "--cuda-graphs"], ranks, tmp_path / "m.jsonl", policy="random:1") == plain
    done = cuda_runs.run(["train", *flags, "--cuda-graphs", "--num-threads", 1], ranks)
    pieces = 2 * 4 - (ranks > 1)  # four micro-batches a rank
    assert f"--cuda-graphs: {2 * pieces} launches" in done.stderr, done.stderr


@standins_only
def test_graphs_are_off_with_a_reason(tmp_path):
    flags = ["--train-iters", "2", "--num-threads", 1, "--device", "cuda", "--cuda-graphs"]
    reasons = {"dropout": GPT, "tensor-parallel": [*LLAMA, "--tp", "2"], "recomputation": [*LLAMA, "--recompute-activations"]}
    reasons["bf16 gradients"] = [*LLAMA, "--bf16", "--main-grads-dtype", "bf16"]
    for reason, model in reasons.items():
        done = cuda_runs.run(["train", *model, *flags], 2 if "--tp" in model else 1)
        assert done.stderr.count(f"--cuda-graphs: off: {reason}") == 1, done.stderr
    done = run_cpu(["train", *LLAMA, "--cuda-graphs", "--device", "cpu"], expect=2)
    assert "--cuda-graphs" in done.stderr


@pytest.mark.parametrize("ranks, layout", [(1, "--recompute-activations"), (2, "--dp 2 --zero 3")])
def test_offloads_are_the_same_run(ranks, layout, tmp_path):
    """Activations and parameters of blocks through two places, moments through one: a copy that comes too early or too late
    takes another's values."""
    small = "--num-layers 3 --hidden-size 32 --seq-length 16 --vocab-size 61 --bf16 --global-batch-size 4 --train-iters 2"
    flags = [*GPT, *small.split(), *layout.split(), "--device", "cuda"]
    off = [*flags, *"--cpu-offloading-num-layers 3 --cpu-offloading-weights --optimizer-cpu-offload".split()]
    want = cuda_runs.train(flags, ranks, tmp_path / "m.jsonl")
    for policy in (POLICIES[0], POLICIES[-1]):
        assert cuda_runs.train(off, ranks, tmp_path / "m.jsonl", policy=policy) == want, policy


def test_what_is_offloaded_is_planned(tmp_path):
    flags = [*GPT, "--bf16", "--device", "cuda", "--num-threads", "1", "--train-iters", "1"]
    off = [*flags, "--cpu-offloading-num-layers", "4", "--cpu-offloading-weights", "--optimizer-cpu-offload"]
    plain, less = (json.loads(run_cpu(["plan", *f, "--json"]).stdout) for f in (flags, off))
    assert less["largest_device_bytes"] < plain["largest_device_bytes"]
    reserved = float(re.search(r"rank 0 reserves ([0-9.]+) MiB", cuda_runs.run(["train", *off]).stdout).group(1))
    assert reserved == pytest.approx(less["ranks"][0]["total"] / 2**20, abs=0.06)

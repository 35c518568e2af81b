"""megac eval --token-losses: every token's loss against an independent model (JAX), the same file from any layout."""

import re

import numpy as np
import pytest
from megac_runs import run
from test_resume import MODEL, step_numbers

h5py = pytest.importorskip("h5py")
SEQ = 16
# Losses of about 5 in float32 after 2 layers; other layouts add in another order.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A dataset of 45 windows and a model that has seen a little of it."""
    folder = tmp_path_factory.mktemp("losses")
    text = "".join(chr(97 + i * i * 7 % 26) for i in range(45 * SEQ + 3))
    (folder / "t.txt").write_text(text)
    run(["prepare", "--input", folder / "t.txt", "--output-prefix", folder / "t"])
    run(["train", *MODEL, "--data-path", folder / "t", "--train-iters", "5", "--save", folder / "c"])
    return folder


def evaluate(folder, flags=(), ranks=1, expect=0, name="l.safetensors"):
    """The printed loss and number of tokens, and the tensors of the file."""
    from safetensors.numpy import load_file

    args = ["eval", "--load", folder / "c", "--data-path", folder / "t", "--token-losses", folder / name]
    done = run([*args, "--num-threads", "1", *flags], ranks, expect)
    loss, tokens = re.search(r"loss ([0-9.]+) .* over (\d+) tokens", done.stdout).groups()
    assert not (folder / f"{name}.tmp").exists()
    return float(loss), int(tokens), load_file(folder / name)


def windows(folder):
    with h5py.File(folder / "t.h5") as file:
        tokens = file["tokens"][:].astype(np.int32)
    n = (len(tokens) - 1) // SEQ
    return tokens[: n * SEQ].reshape(n, SEQ), tokens[1 : n * SEQ + 1].reshape(n, SEQ)


def test_losses_are_those_of_the_model(model, tmp_path):
    jax = pytest.importorskip("jax")
    import reference_model

    loss, tokens, tensors = evaluate(model)
    assert list(tensors) == ["losses"] and tensors["losses"].dtype == np.float32
    seen, targets = windows(model)
    params, _ = step_numbers([*MODEL, "--train-iters", "9", "--data-path", model / "t", "--load", model / "c"], tmp_path)
    cfg = {"num_layers": 2, "num_attention_heads": 4, "vocab_size": 257}
    log_p = jax.nn.log_softmax(reference_model.logits(params, seen, reference_model.complete(cfg, params)), axis=-1)
    want = -np.take_along_axis(np.asarray(log_p), targets[..., None], axis=-1)[..., 0]
    assert tensors["losses"].shape == want.shape and tokens == want.size
    np.testing.assert_allclose(tensors["losses"], want, atol=TOLERANCE)
    assert loss == pytest.approx(want.mean(), abs=1e-5)


LAYOUTS = {
    "micro-batches of 4": (1, ["--micro-batch-size", "4"]),
    "tp2 pp2": (4, ["--tp", "2", "--pp", "2"]),
    "dp2": (2, []),
    "dp3, micro-batches of 2": (3, ["--micro-batch-size", "2", "--global-batch-size", "12"]),
    "pp2 dp2 sp": (8, ["--tp", "2", "--pp", "2", "--sequence-parallel", "--micro-batch-size", "2"]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_writes_the_same(layout, model):
    """45 windows fill neither the replicas nor the micro-batches."""
    ranks, flags = LAYOUTS[layout]
    _, _, want = evaluate(model, name="one.safetensors")
    _, tokens, got = evaluate(model, flags, ranks)
    assert tokens == got["losses"].size
    np.testing.assert_allclose(got["losses"], want["losses"], atol=TOLERANCE)


def test_a_part(model):
    """--eval-iters takes the first windows of the data."""
    _, _, whole = evaluate(model, name="whole.safetensors")
    _, tokens, part = evaluate(model, ["--eval-iters", "3", "--global-batch-size", "4"], name="part.safetensors")
    assert tokens == 12 * SEQ
    assert np.array_equal(part["losses"], whole["losses"][:12])


def test_a_file_that_cannot_be_written(model):
    args = ["eval", "--load", model / "c", "--data-path", model / "t", "--token-losses", model / "none" / "l"]
    done = run(args, expect=2)
    assert len(done.stderr.splitlines()) == 1 and str(model / "none") in done.stderr

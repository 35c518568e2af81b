"""What the tests of megac convert share: the fixtures, the tensors of a directory, conversions."""

import json
import pathlib
import sys

import safetensors.numpy

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "train"))
from megac_runs import run  # noqa: E402

FIXTURES = HERE / "fixtures"
NAMES = sorted(p.name for p in FIXTURES.iterdir() if p.is_dir())
ONE_OF_EACH = ["gpt2", "llama3", "mistral", "qwen2", "qwen3"]


def convert(source, target, *flags, expect=0):
    """megac convert; with another exit status expected, checks that one line says why and that nothing is left."""
    before = sorted(target.parent.iterdir())
    done = run(["convert", "--input", source, "--output", target, *flags], expect=expect)
    if expect:
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert sorted(target.parent.iterdir()) == before, "something was left behind"
    else:
        assert done.stderr == ""
        assert set(target.parent.iterdir()) == {*before, target}
    return done


def stored(folder):
    """Tensors of a directory of Hugging Face by the library's reader: name -> (type, shape, bytes)."""
    tensors = {}
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        for name, t in safetensors.deserialize(path.read_bytes()):
            assert name not in tensors
            tensors[name] = (t["dtype"], t["shape"], bytes(t["data"]))
    index = folder / "model.safetensors.index.json"
    if len(files) > 1:
        listed = json.loads(index.read_text())
        assert {k: (folder / v).exists() for k, v in listed["weight_map"].items()} == dict.fromkeys(tensors, True)
        assert listed["metadata"]["total_size"] == sum(len(t[2]) for t in tensors.values())
    else:
        assert not index.exists()
    return tensors


def global_tensors(save):
    """Tensors of a megac checkpoint's model, put together from slices, without a vocabulary's padding."""
    import numpy as np

    folder = next(save.glob("iter_*"))
    meta = json.loads((folder / "metadata.json").read_text())
    files = {f["name"]: safetensors.numpy.load_file(folder / f["name"]) for f in meta["files"]}
    whole = {}
    for name, t in meta["tensors"].items():
        if not name.startswith("model."):
            continue
        whole[name] = np.full(t["shape"], np.nan, dtype=np.float32)
        for s in t["slices"]:
            place = tuple(slice(b, b + n) for b, n in zip(s["begin"], s["shape"]))
            whole[name][place] = files[s["file"]][s["tensor"]]
        if "valid_rows" in t:
            whole[name] = whole[name][: t["valid_rows"]]
    return whole

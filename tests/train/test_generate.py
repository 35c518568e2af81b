"""megac generate: the same text on any layout and in any grouping, with the cache of keys and values and without."""

import pytest
from megac_runs import run, train
from test_resume import LEARNING, LLAMA, MODEL

PROMPTS = ["a", "and the light", "the darkness was", "of", "face of the", "xyz"]
# A text of so many tokens outgrows --seq-length 16 whatever its prompt.
NEW = ["--max-new-tokens", "20"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A GPT and a Llama model with one sliding window, trained on one text, and a file of prompts."""
    folder = tmp_path_factory.mktemp("generate")
    words = "and the light was good and the darkness was upon the face of the deep waters of the earth".split()
    (folder / "t.txt").write_text(" ".join(words[i * i * 7 % len(words)] for i in range(4000)))
    run(["prepare", "--input", folder / "t.txt", "--output-prefix", folder / "t", "--append-eod"])
    args = [*MODEL, *LEARNING, "--data-path", folder / "t"]
    train([*args, "--save", folder / "gpt"], 1, folder)
    train([*args, *LLAMA, "--qk-layernorm", "--window-size", "9", "0", "--save", folder / "llama"], 1, folder)
    (folder / "p.txt").write_text("\n".join(PROMPTS) + "\n")
    return folder


def generate(folder, model, flags, ranks=1):
    args = ["generate", "--load", folder / model, *NEW, "--num-threads", "1", *flags]
    return run(args, ranks).stdout


LAYOUTS = {
    "tp2": (2, ["--tp", "2"]),
    "pp2, three texts at once": (2, ["--pp", "2", "--inference-max-requests", "3"]),
    "tp2 pp2": (4, ["--tp", "2", "--pp", "2"]),
    "tp4, KV heads held twice": (4, ["--tp", "4", "--inference-max-requests", "4"]),
    "tp2 dp2, no cache": (4, ["--tp", "2", "--no-kv-cache"]),
}
WAYS = {
    "greedy": ["--greedy"],
    "drawn": ["--temperature", "1.2", "--sampling-seed", "7"],
    "filtered": ["--temperature", "1.5", "--top-k", "20", "--top-p", "0.9"],
}


@pytest.mark.parametrize("model, way", [("gpt", "greedy"), ("llama", "greedy"), ("gpt", "drawn"), ("llama", "filtered")])
def test_one_text_on_any_layout(model, way, runs):
    """Compared with one text at a time on one rank without the cache."""
    prompts = ["--prompts", runs / "p.txt", *WAYS[way]]
    want = generate(runs, model, [*prompts, "--no-kv-cache", "--inference-max-requests", "1"])
    assert all(prompt in want for prompt in PROMPTS) and len(set(want)) > 12
    assert generate(runs, model, prompts) == want
    for name, (ranks, flags) in LAYOUTS.items():
        assert generate(runs, model, [*prompts, *flags], ranks) == want, name


def test_filters_choose(runs):
    """Megatron-LM's spellings. Of the likeliest alone nothing is drawn; of a few, other texts than of all."""
    prompt = ["--prompt", "and the l"]
    greedy = generate(runs, "gpt", [*prompt, "--greedy"])
    assert generate(runs, "gpt", [*prompt, "--top_k", "1", "--temperature", "3"]) == greedy
    assert generate(runs, "gpt", [*prompt, "--top_p", "1e-6", "--temperature", "3"]) == greedy
    hot = [*prompt, "--temperature", "3"]
    texts = {generate(runs, "gpt", [*hot, *flags]) for flags in ([], ["--top-k", "3"], ["--top-p", "0.5"])}
    assert len(texts) == 3


def test_more_positions_than_trained_with_are_refused(runs):
    done = run(["generate", "--load", runs / "gpt", "--prompt", "x", "--seq-length", "64"], expect=2)
    assert "--max-position-embeddings 16" in done.stderr

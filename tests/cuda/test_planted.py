"""The training step under the race detector, which sees every access of host code, kernels and libraries: the step as
it is has no race, and faults planted in it are found (planted.py has all places of all faults, here are a few)."""
import cuda_runs
import planted
import pytest
from cuda_runs import needs_race_build

pytestmark = needs_race_build

# fault, layout, place (a fraction of its calls)
PLACES = [
    ("skip-wait", "tp", 0.5),
    ("skip-wait", "pp", 0.6),
    ("skip-wait", "zero", 0.7),
    ("skip-wait", "offload", 0.7),
    ("skip-record", "tp", 0.35),
    ("skip-sync", "one", 0.1),
    ("reuse-early", "tp", 0.6),
    ("reuse-early", "dp", 0.5),
    ("pinned-early", "one", 0.6),
    ("shared-workspace", "one", 0.5),
    ("host-touch", "one", 0.5),
    ("swap-kind", "pp", 0.4),
    ("swap-order", "pp", 0.4),
    ("wrong-count", "tp", 0.5),
    ("skip-launch", "one", 0.4),
    ("leak", "tp", 0.5),
    ("allocation", "one", 0.7),
    ("!launch", "one", 0.5),
    ("!async", "one", 0.5),
    ("!*", "one", 0.5),
]


@pytest.fixture(scope="module")
def clean():
    """Counted runs without a fault, by layout and kind of fault."""
    runs = {}

    def get(layout, name):
        key = layout, name if name[0] == "!" else ""
        if key not in runs:
            runs[key] = planted.count(layout, name)
        return runs[key]

    return get


@pytest.mark.parametrize("layout", planted.LAYOUTS)
def test_the_step_has_no_race(layout, clean):
    assert "MISUSE" not in clean(layout, "skip-wait").stderr  # planted.count has looked at the exit status and the losses


def test_four_ranks_have_no_race():
    llama = "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear "
    llama += "--untie-embeddings-and-output-weights --group-query-attention --num-query-groups 2"
    flags = [*planted.MODEL, *llama.split(), "--bf16", "--train-iters", 2, "--tp", 2, "--pp", 2, "--sequence-parallel"]
    cuda_runs.run(["train", *flags], 4, instrumented=True)


@pytest.mark.parametrize("name, layout, place", PLACES, ids=lambda v: str(v))
def test_planted_faults_are_found(name, layout, place, clean):
    """At this place, or at one of the next three where nothing changes by this one."""
    fault = planted.BY_NAME[name]
    undisturbed = clean(layout, name)
    first = 1 + int(place * undisturbed.calls(name))
    for nth in range(first, first + 4):
        outcome = planted.plant(fault, layout, nth)
        finder, words = outcome.found_by(undisturbed)
        if finder or not outcome.is_harmless(fault):
            break
    assert finder == fault.finder, (nth, finder, words)

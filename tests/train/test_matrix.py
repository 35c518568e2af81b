"""Precision x ZeRO x recomputation x layout: every combination is the plain run of its precision.

Every pair of settings occurs in what runs here; MEGAC_MATRIX=full runs all 180 (five minutes):

  MEGAC_MATRIX=full tests/run.sh -k matrix
"""

import itertools
import os

import pytest
from megac_runs import train
from test_layouts import COMMON, DROPOUT, MODELS
from test_resume import losses

FACTORS = {
    "precision": ["", "--bf16", "--fp16 --initial-loss-scale 65536"],
    "zero": ["0", "1", "2", "3"],
    "recompute": ["", "--recompute-activations", "--recompute-granularity full --recompute-num-layers 2"],
    "layout": ["1", "2 --tp 2", "2 --pp 2", "2", "8 --tp 2 --pp 2 --sequence-parallel"],
}
TOLERANCE = {"": 1e-5, "--bf16": 2e-3, "--fp16 --initial-loss-scale 65536": 5e-4}


def pairs_of(row):
    return {(i, j, row[i], row[j]) for i, j in itertools.combinations(range(len(row)), 2)}


def covering(rows):
    """Rows, chosen greedily, in which every pair of values of two factors occurs."""
    left, chosen = set().union(*map(pairs_of, rows)), []
    while left:
        best = max(rows, key=lambda r: len(pairs_of(r) & left))
        left -= pairs_of(best)
        chosen.append(best)
    return chosen


ALL = list(itertools.product(*FACTORS.values()))
ROWS = ALL if os.environ.get("MEGAC_MATRIX") == "full" else covering(ALL)
_plain = {}


def run(precision, zero, recompute, layout, tmp_path):
    ranks, *flags = layout.split()
    args = [*COMMON, *MODELS["llama-tied"], *DROPOUT["dropout"], "--train-iters", "5", "--eval-iters", "0"]
    args += ["--micro-batch-size", "8" if "sequence" not in layout and layout != "2" else "4", *flags]
    return losses(train([*args, *precision.split(), *recompute.split(), "--zero", zero], int(ranks), tmp_path)[0])


def plain(precision, layout, tmp_path):
    """The run without ZeRO and recomputation, made once for each precision and layout."""
    if (precision, layout) not in _plain:
        _plain[precision, layout] = run(precision, "0", "", layout, tmp_path)
    return _plain[precision, layout]


def test_the_rows_cover_every_pair():
    wanted = set().union(*map(pairs_of, ALL))
    assert set().union(*map(pairs_of, ROWS)) == wanted and len(wanted) == 3 * 4 + 3 * 3 + 3 * 5 + 4 * 3 + 4 * 5 + 3 * 5


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " | ".join(x or "-" for x in row))
def test_is_the_plain_run(row, tmp_path):
    precision, _, _, layout = row
    got, one = run(*row, tmp_path), plain(precision, "1", tmp_path)
    assert got == plain(precision, layout, tmp_path)  # one micro-batch a step: every stage of ZeRO adds in one order
    for a, b in zip(got, one, strict=True):
        assert a[1] == pytest.approx(b[1], rel=TOLERANCE[precision]), (a, b)

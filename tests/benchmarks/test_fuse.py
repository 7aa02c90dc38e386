"""benchmarks/fuse.py and benchmarks/reparameterize.py: what they claim, and what fails a claim."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("fuse"), importlib.import_module("reparameterize")


def pair(fuse, other, student, mean, fused):
    before = {name: 0.5 for name in (fuse.PARENT, fuse.OTHER, *fuse.FUSED)}
    before |= {fuse.MEAN: mean, fuse.DEFAULT: fused}
    after = {name: before[name] for name in fuse.TUNED}
    return {"other": other, "model": student, "before": before, "after": after}


def found(fuse, rows):
    claims = fuse.claims(rows)
    return {"rows": rows, "claims": claims, "steps": 7, "tuning": "distill"}


def test_fused_must_beat_the_plain_mean_in_every_pair(scripts):
    fuse, _ = scripts
    good, bad = pair(fuse, 0, 1, 0.2, 0.4), pair(fuse, 1, 2, 0.3, 0.3)
    assert all(claim["holds"] for claim in fuse.claims([good]))
    text = fuse.section(found(fuse, [good, bad]))
    assert "Not better than the plain mean: 1 into 2, before" in text
    assert "0 into 1, before" not in text


def test_the_table_has_the_mean_and_the_range(scripts):
    fuse, _ = scripts
    rows = [pair(fuse, 0, 1, 0.2, 0.4), pair(fuse, 1, 2, 0.3, 0.6)]
    lines = {name: rest for name, *rest in fuse.table(rows)}
    assert lines[fuse.DEFAULT] == ["50.00 (40.00 to 60.00)"] * 2
    assert lines[fuse.OTHER][1] == ""  # it is not fine-tuned


def test_a_figure_that_was_found_is_not_made_again(scripts, tmp_path):
    fuse, _ = scripts
    (tmp_path / "fuse_7.json").write_text('{"the model 0 1 7": 0.25}')
    bench = fuse.Bench(tmp_path, 7)
    assert bench.figure(fuse.PARENT, 0, 1, 7) == 0.25


def folded(difference=1e-7, parameters=5, **others):
    sizes = {"layers": 4, "batch norms": 3, "modules": 9, "parameters": 6}
    after = {**sizes, "parameters": parameters}
    differences = {"difference": difference, "onnx_difference": 1e-7}
    return {"model": "m", "before": sizes, "after": after, **differences, **others}


@pytest.mark.parametrize(
    ("row", "failed"),
    [({}, ""), ({"difference": 1e-3}, "differ by 1e-03"), ({"parameters": 7}, "nothing grew")],
)
def test_reparameterized_outputs_are_equal_and_nothing_grows(scripts, row, failed):
    _, reparameterize = scripts
    claims = reparameterize.claims([folded(**row)])
    text = reparameterize.section({"rows": [folded(**row)], "claims": claims})
    assert ("Does not hold" in text) == bool(failed)
    assert failed in text


def test_the_branches_that_converters_leave_are_named(scripts):
    _, reparameterize = scripts
    timed = {"ratio": 0.5, "low": 0.4, "high": 0.6, "first_ms": 1.0, "second_ms": 2.0}
    row = folded(latency={**timed, "convolutions": [9, 4]})
    text = reparameterize.section({"rows": [row], "claims": []})
    assert "m: 9 → 4" in text
    assert "| 2.00 | 1.00 | 0.50 (0.40 to 0.60) |" in text

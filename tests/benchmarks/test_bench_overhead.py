"""benchmarks/bench_overhead.py: what it claims, what fails a claim, and that it can be run."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("bench_overhead")


def found(script, high=0.8, held=20):
    added = {"low": 0.1, "percent": 0.4, "high": high}
    tries = [
        {"ratio": 1.01, "low": 0.99, "high": 1.02, "holds": number < held} for number in range(20)
    ]
    made = {
        "environment": {"cpu": "A", "cores": 2, "load_1min": 1.5},
        "overhead": {"ViT": {"ms": 1.5, "reported": added, "loop": added}},
        "watching": 0.04,
        "itself": tries,
        "one_load": tries,
        "apart": tries,
        "coverage": [{"correlation": 0.5, "ours": 0.95, "independent": 0.8}],
    }
    return {**made, "claims": script.claims(made)}


@pytest.mark.parametrize(
    ("high", "held", "holds"),
    [(0.8, 18, [True, True]), (1.2, 18, [False, True]), (0.8, 17, [True, False])],
)
def test_a_claim_needs_the_whole_interval_and_eighteen_tries(script, high, held, holds):
    assert [claim["holds"] for claim in found(script, high, held)["claims"]] == holds


def test_the_page_has_every_figure(script):
    text = script.section(found(script, held=19))
    assert "| ViT | 1.500 | +0.40 [+0.10, +0.80] | +0.40 [+0.10, +0.80] |" in text
    assert "19 of 20 | 1.0 | 3.0" in text
    assert "takes 0.04% of one core" in text
    assert "does not hold" not in text


def test_it_measures_a_real_artifact(script, cpu_bundle, monkeypatch):
    monkeypatch.setattr(script, "SECONDS", 0.3)
    monkeypatch.setattr(script, "GROUPS", 3)
    monkeypatch.setattr(script, "TRY_SECONDS", 0.05)
    path = cpu_bundle / "cpu" / "model.onnx"
    row = script.overhead(path)
    assert row["ms"] > 0
    assert row["loop"]["low"] <= row["loop"]["percent"] <= row["loop"]["high"]
    for way in (script.itself, script.one_load):
        (tried,) = way(path, 1)
        assert tried["holds"] == (tried["low"] <= 1 <= tried["high"])


def test_bursts_cost_an_interval_for_independent_values_its_coverage(script):
    quiet, _, bursts = script.coverage(runs=200)
    assert quiet["ours"] > 0.93
    assert bursts["ours"] > bursts["independent"] + 0.1

"""The arithmetic of benchmarks/ssm.py's report."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import ssm_report


def row(model, length, ms, **others):
    return {"model": model, "length": length, "run-ours": {"ms": ms, "peak_mb": 1.0}, **others}


def test_the_exponent_is_the_slope_from_1024_tokens_on():
    rows = [row("m", n, 1e-3 * n**1.5 if n >= 1024 else 9.0) for n in (64, 1024, 4096, 16384)]
    assert ssm_report.exponent(rows, "run-ours") == pytest.approx(1.5)
    assert ssm_report.exponent(rows[:2], "run-ours") is None


def test_the_crossover_lies_between_the_lengths_where_the_order_changes():
    ssm = [row("s", n, float(n)) for n in (64, 256, 1024)]
    attention = [row("a", n, n * n / 512) for n in (64, 256, 1024)]
    assert ssm_report.crossover(ssm, attention) == pytest.approx(512)
    assert ssm_report.crossover(attention, ssm) is None


def test_claims_say_what_does_not_hold():
    ratio = {"ratio": 0.5, "low": 0.4, "high": 0.6}
    found = {
        "rows": [row("Mamba-2", 1024, 10.0, ratio=ratio), row("Mamba-2", 4096, 80.0)],
        "prompt": [{"model": "Mamba-2", "length": 9, "failed": "no"}],
    }
    slow, steep = ssm_report.claims(found)
    assert not slow["holds"]
    assert "2.00 times" in slow["claim"]
    assert not steep["holds"]

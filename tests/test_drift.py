"""Drift: each figure by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgekit.drift import TOLERANCES, Drift, Tolerance, compare, cosine, tolerance_for


def calls(*rows, name="y"):
    return [{name: np.array([row], np.float32)} for row in rows]


def test_figures_by_hand():
    drift = compare(calls([3, 4], [0, 0]), calls([3, 3], [0, 0]))
    assert drift.max_abs == 1
    assert drift.relative == pytest.approx(1 / 5)
    assert drift.cosine == pytest.approx((9 + 12) / (5 * math.sqrt(18)))
    assert drift.sqnr_db == pytest.approx(20 * math.log10(5))
    assert drift.peak == 4
    assert drift.samples == 2
    assert drift.top1_agreement == 0.5


def test_equal_outputs():
    drift = compare(calls([1, 2]), calls([1, 2]))
    assert (drift.max_abs, drift.relative, drift.top1_agreement) == (0, 0, 1)
    assert drift.cosine == pytest.approx(1, abs=1e-15)
    assert drift.sqnr_db == math.inf
    assert drift.as_dict()["sqnr_db"] == 999


def test_the_worst_output_counts():
    reference = [{"a": np.ones((1, 2)), "b": np.array([[1.0, 0.0]])}]
    actual = [{"a": np.ones((1, 2)), "b": np.array([[0.0, 1.0]])}]
    drift = compare(reference, actual)
    assert drift.cosine == 0
    assert drift.top1_agreement == 1  # Of the first output.


def test_no_top1_without_classes():
    assert compare([{"y": np.ones((1, 2, 2))}], [{"y": np.ones((1, 2, 2))}]).top1_agreement is None
    assert compare(calls([1]), calls([1])).top1_agreement is None


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [([0, 0], [0, 0], 1), ([0, 0], [1, 0], 0), ([1, 0], [-2, 0], -1), ([1, 1], [np.nan, 1], 0)],
)
def test_cosine_of_special_vectors(a, b, expected):
    assert cosine(np.array(a, float), np.array(b, float)) == pytest.approx(expected)


def drift(**figures):
    given = dict(max_abs=0, relative=0, cosine=1, sqnr_db=99, top1_agreement=1, samples=1, peak=1)
    return Drift(**{**given, **figures})


def test_tolerance_names_the_figure_at_fault():
    strict = Tolerance(cosine=0.99, max_abs=0.1)
    assert strict.failure(drift(cosine=0.99, max_abs=0.1)) == ""
    assert strict.failure(drift(cosine=0.98)) == "cosine 0.980000 is under 0.99"
    assert strict.failure(drift(max_abs=0.2)) == "max-abs 2.0e-01 is over 1.0e-01"
    assert strict.failure(drift(max_abs=0.2, peak=3.0)) == ""  # Relative to a peak above 1.
    assert "cosine nan" in strict.failure(drift(cosine=math.nan))
    assert "max-abs nan" in strict.failure(drift(max_abs=math.nan))


def test_less_precision_allows_more():
    assert TOLERANCES["fp32"].cosine > TOLERANCES["fp16"].cosine > TOLERANCES["int8"].cosine


@pytest.mark.parametrize("precision", TOLERANCES)
def test_levels_are_judged_as_int8_at_the_least(precision):
    own, loose = TOLERANCES[precision], TOLERANCES["int8"]
    assert tolerance_for(precision, discrete=False) == own
    found = tolerance_for(precision, discrete=True)
    assert found.cosine == min(own.cosine, loose.cosine)
    assert found.max_abs is None


def test_nan_in_the_artifact_fails_every_precision():
    found = compare(calls([1, 2]), calls([1, math.nan]))
    assert all(tolerance.failure(found) for tolerance in TOLERANCES.values())

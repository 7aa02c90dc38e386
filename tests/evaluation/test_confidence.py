"""Confidence intervals hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.evaluation import confidence


def hits(count: int, of: int) -> np.ndarray:
    return np.arange(of) < count


def test_wilson_is_that_of_the_literature():
    """Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I."""
    assert confidence.share(hits(81, 263)) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert confidence.share(hits(0, 20)) == pytest.approx((0, 0.1611), abs=1e-4)
    assert confidence.share(hits(29, 29)) == pytest.approx((0.8830, 1), abs=1e-4)


@pytest.mark.parametrize("n", [50, 200])
def test_wilson_holds_the_truth(n):
    """On average over shares; for a single one, coverage jumps with the number of samples."""
    random = np.random.default_rng(0)
    truths = random.uniform(0.8, 1, 4000)
    intervals = [confidence.share(random.random(n) < p) for p in truths]
    held = [low <= p <= high for (low, high), p in zip(intervals, truths, strict=True)]
    assert 0.94 < np.mean(held) < 0.97


@pytest.mark.parametrize("lost", [0.0, 0.01, 0.1])
def test_a_paired_difference_holds_the_truth(lost):
    """The second model errs where the first does, and on a share ``lost`` beside it."""
    random = np.random.default_rng(0)
    base = random.random((2000, 200)) < 0.95
    worse = base & (random.random(base.shape) >= lost)
    intervals = [confidence.difference(w, b) for w, b in zip(worse, base, strict=True)]
    truth = -0.95 * lost
    assert np.mean([low <= truth <= high for low, high in intervals]) > 0.93


def test_pairs_tell_more_than_two_intervals():
    base = hits(900, 1000)
    worse = base & ~hits(20, 1000)
    low, high = confidence.difference(worse, base)
    assert -0.04 < low < -0.02 < high < 0
    assert confidence.share(worse)[1] > confidence.share(base)[0]

"""Interval: it holds the median as often as it says, also of values that come in bursts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgekit.latency.interval import confidence, dependence, median_interval, quantile_interval


def bursts(generator, correlation, count):
    """An autoregression of first order whose values are spread as a standard normal."""
    values = [generator.standard_normal()]
    for fresh in generator.standard_normal(count - 1):
        values.append(correlation * values[-1] + math.sqrt(1 - correlation**2) * fresh)
    return np.array(values)


def share_held(correlation, count, interval=median_interval, runs=400):
    """How often the interval holds zero, the median."""
    generator = np.random.default_rng(1)
    intervals = (interval(bursts(generator, correlation, count)) for _ in range(runs))
    return sum(low <= 0 <= high for low, _, high in intervals) / runs


@pytest.mark.parametrize("count", [6, 15, 40, 300])
def test_independent_values_are_held_in_95_of_100_runs(count):
    assert share_held(0, count) >= 0.93


@pytest.mark.parametrize(("correlation", "least"), [(0.7, 0.88), (0.8, 0.87)])
def test_bursts_are_held_where_an_interval_for_independent_values_fails(correlation, least):
    shuffle = np.random.default_rng(0).permutation
    naive = share_held(correlation, 100, lambda values: median_interval(shuffle(values)))
    assert share_held(correlation, 100) >= least > naive + 0.05


def test_a_steady_series_is_not_given_a_wide_interval():
    generator = np.random.default_rng(0)
    values = generator.standard_normal(400)
    low, _, high = median_interval(values)
    ordered = np.sort(values)
    widest = ordered[230] - ordered[170]
    assert 0 < high - low < widest


def test_what_changes_little_by_little_is_hardly_known():
    low, middle, high = median_interval(np.arange(100.0))
    assert (low, middle, high) == (0, 49.5, 99)


def test_equal_values_have_no_width():
    assert median_interval(np.full(20, 3.0)) == (3, 3, 3)
    assert dependence(np.zeros(20, bool)) == 1


@pytest.mark.parametrize("count", range(6, 60))
def test_confidence_is_at_least_what_is_said_from_six_values_on(count):
    assert confidence(count) >= 0.95
    assert confidence(count) < 1


def test_confidence_of_few_values_is_lower_and_said():
    assert [confidence(count) for count in (1, 2, 3, 5)] == [0, 0.5, 0.75, 0.9375]


def test_other_quantiles():
    generator = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        low, middle, high = quantile_interval(generator.uniform(size=200), 0.9)
        assert low <= middle <= high
        held += low <= 0.9 <= high
    assert held / 400 >= 0.93

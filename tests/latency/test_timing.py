"""Timing: statistics on a clock that we turn."""

from __future__ import annotations

import json
import statistics

import numpy as np
import pytest

from edgekit.latency import Latency, measure


def test_statistics_by_hand(clock):
    turning = clock(*(n / 1000 for n in range(1, 101)))
    found = measure(turning.work, batch=4, warmup=0, iterations=100, seconds=1e9)
    assert found.avg == pytest.approx(50.5)
    assert (found.min, found.max) == (pytest.approx(1), pytest.approx(100))
    assert found.p50 == pytest.approx(50.5)
    assert found.p90 == pytest.approx(90.1)
    assert found.p95 == pytest.approx(95.05)
    assert found.p99 == pytest.approx(99.01)
    assert found.std == pytest.approx(np.std(range(1, 101)))
    assert found.throughput == pytest.approx(4 * 1000 / 50.5)
    assert found.iterations == 100
    assert found.spread == pytest.approx(found.std / found.avg)


def test_warmup_is_not_timed(clock):
    turning = clock(*[100.0] * 5, *[0.001] * 20)
    found = measure(turning.work, warmup=5, iterations=20)
    assert found.max == pytest.approx(1)
    assert (found.warmup, turning.calls) == (5, 25)


@pytest.mark.parametrize(("duration", "expected"), [(0.5, 10), (0.1, 30), (0.001, 100)])
def test_it_ends_at_the_first_limit_but_not_before_ten(clock, duration, expected):
    turning = clock(duration)
    found = measure(turning.work, warmup=0, iterations=100, seconds=3)
    assert found.iterations == pytest.approx(expected, abs=1)


def test_each_time_is_kept_in_order_and_left_out_of_json(clock):
    found = measure(clock(0.002, 0.001).work, warmup=0, iterations=10)
    assert found.times == pytest.approx((2, 1) * 5)
    assert "times" not in json.loads(json.dumps(found.as_dict()))


def test_the_box_is_tukeys():
    found = Latency.of([*(n / 1000 for n in range(1, 100)), 1.0]).box()
    assert (found["q1"], found["q3"]) == pytest.approx((25.75, 75.25))
    assert (found["low"], found["high"]) == pytest.approx((1, 99))
    assert found["outliers"] == [1, 1]


def test_p90_is_at_most_what_it_nearly_never_exceeds():
    """Of samples whose true p90 is known, no more than one in a hundred and some is too low."""
    generator = np.random.default_rng(0)
    true = statistics.NormalDist(10, 1).inv_cdf(0.9)
    runs = [Latency.of(generator.normal(0.010, 0.001, 1024)) for _ in range(500)]
    assert sum(run.p90_at_most < true for run in runs) <= 12
    assert all(run.p90 < run.p90_at_most < run.max for run in runs)

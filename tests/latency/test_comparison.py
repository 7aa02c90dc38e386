"""Comparison: turns, loads and ratios on a clock that we turn, then two real artifacts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgekit.latency import Ratio, Settings, comparison, paired
from edgekit.latency.comparison import CALLS, LEAST_LOADS, LOADS, in_turns

EVER = Settings({}, 0, 10**6, 1e9)


@pytest.fixture
def opened(clock, session, monkeypatch):
    """``paired`` opens these: paces by path, with every path opened."""
    turning, order = clock(0.0), []

    def make(**paces):
        def load(runtime, path, threads):
            order.append(path)
            return session(turning, paces[path]())

        monkeypatch.setattr(comparison, "load", load)
        return turning, order

    return make


def test_two_artifacts_take_turns(opened):
    slow = lambda: itertools.cycle([0.001, *[0.004] * CALLS])  # noqa: E731
    opened(quick=lambda: itertools.repeat(0.002), slow=slow)
    found = paired("quick", "slow", "any", Settings({}, 0, 100, 1e9), threads=1)
    assert (found.ratio, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (found.first_ms, found.second_ms) == pytest.approx((2, 4))
    assert (found.loads, found.verdict, found.confidence) == (LOADS, "faster", 0.969)


def test_both_are_loaded_anew_and_neither_is_always_first(opened):
    _, order = opened(a=lambda: itertools.repeat(0.001), b=lambda: itertools.repeat(0.001))
    found = paired("a", "b", "any", Settings({}, 0, 1, 1e9), threads=1)
    assert order == ["a", "b", "b", "a"] * (LOADS // 2)
    assert (found.rounds, found.loads) == (LOADS, LOADS)
    assert found.verdict == "no difference seen"


def test_without_time_there_are_few_loads_and_it_says_what_that_is_worth(opened):
    opened(a=lambda: itertools.repeat(1.0), b=lambda: itertools.repeat(1.0))
    found = paired("a", "b", "any", Settings({}, 0, 100, 1e-9), threads=1)
    assert (found.loads, found.rounds, found.confidence) == (LEAST_LOADS, LEAST_LOADS, 0.75)


def test_time_is_shared_out_among_the_loads(opened):
    turning, _ = opened(a=lambda: itertools.repeat(0.001), b=lambda: itertools.repeat(0.001))
    found = paired("a", "b", "any", Settings({}, 0, 10**6, 12.0), threads=1)
    assert found.loads == LOADS
    assert turning.now == pytest.approx(12, rel=0.1)
    assert found.rounds == pytest.approx(12 / (4 * (CALLS + 1) * 0.001), rel=0.1)


def test_a_machine_that_slows_down_evenly_favours_neither(clock, session):
    turning = clock(0.0)

    def slowing():
        while True:
            yield 0.001 * (1 + turning.now)

    opens = lambda: session(turning, slowing())  # noqa: E731
    found = in_turns(opens, opens, Settings({}, 0, 600, 1e9), 1)
    assert turning.now > 1
    assert found.ratio == pytest.approx(1, abs=0.01)
    assert found.verdict == "no difference seen"


def test_other_work_that_hits_one_side_more_is_no_difference(clock, session):
    """Two of three calls are made slower, by chance and by a lot."""
    turning, generator = clock(0.0), np.random.default_rng(1)

    def disturbed():
        while True:
            yield 0.001 + generator.choice([0, 0.002, 0.005])

    opens = lambda: session(turning, disturbed())  # noqa: E731
    found = in_turns(opens, opens, Settings({}, 0, 600, 1e9), 1)
    assert (found.low, found.ratio, found.high) == pytest.approx((1, 1, 1))
    assert (found.first_ms, found.second_ms) == pytest.approx((1, 1))


def test_loads_that_differ_make_no_difference_of_artifacts(clock, session):
    """Each load is steadily a little faster or slower: only other loads can tell."""
    turning, generator = clock(0.0), np.random.default_rng(3)
    held = narrow = 0
    for _ in range(60):
        opens = lambda: session(turning, itertools.repeat(generator.normal(1, 0.005)))  # noqa: E731
        found = in_turns(opens, opens, Settings({}, 0, 40, 1e9), 1, loads=12)
        held += found.low <= 1 <= found.high
        narrow += found.high - found.low < 0.03
    assert held >= 54
    assert narrow == 60


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.8, 0.9, "faster"), (1.1, 1.2, "slower"), (0.99, 1.01, "no difference seen")],
)
def test_the_verdict_needs_the_whole_interval(low, high, verdict):
    assert Ratio((low + high) / 2, low, high, 1, 1, 9, 1).verdict == verdict


def test_an_older_ratio_can_still_be_made():
    assert Ratio(0.5, 0.4, 0.6, 1.0, 2.0, 15, 1).as_dict()["rounds"] == 15

"""Modes: MLPerf's single stream on a clock that we turn, and calls in flight."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest

from edgekit.errors import EdgekitError
from edgekit.latency import modes
from edgekit.latency.modes import one_by_one, run_streams, single_stream
from edgekit.latency.plan import QUERIES, SINGLE_STREAM_SECONDS, Limits

CALLS = tuple({"x": np.full((1, 2), n)} for n in range(4))


def test_single_stream_makes_at_least_so_many_queries(clock, session):
    found, extra = single_stream(Limits(0, seconds=1.0))(
        session(clock(0.0), itertools.repeat(0.01)), CALLS
    )
    assert (found.iterations, extra["figure"]["name"]) == (QUERIES, "p90_ms")


def test_single_stream_goes_on_for_at_least_so_long(clock, session):
    turning = clock(0.0)
    found, _ = single_stream(Limits(0))(session(turning, itertools.repeat(0.02)), CALLS)
    assert turning.now == pytest.approx(SINGLE_STREAM_SECONDS, abs=0.03)
    assert found.iterations == pytest.approx(3000, abs=2)


def test_single_stream_goes_through_the_samples_by_chance(clock, session):
    used = session(clock(0.0), itertools.repeat(1.0))
    _, extra = single_stream(Limits(0, 40, 1.0))(used, CALLS)
    order = [int(inputs["x"][0, 0]) for inputs in used.seen]
    assert set(order) == {0, 1, 2, 3}
    assert order != sorted(order)
    assert extra["samples"] == 4
    again = session(clock(0.0), itertools.repeat(1.0))
    single_stream(Limits(0, 40, 1.0))(again, CALLS)
    assert order == [int(inputs["x"][0, 0]) for inputs in again.seen]


def test_the_figure_of_a_single_stream_is_p90(clock, session):
    paces = itertools.cycle([0.001] * 8 + [0.005] * 2)
    found, extra = single_stream(Limits(0, 1000, 0.001))(session(clock(0.0), paces), CALLS)
    assert extra["figure"]["value"] == pytest.approx(5) == pytest.approx(found.p90)
    assert extra["p90_at_most_ms"] == pytest.approx(5)
    assert extra["figure"]["low"] <= extra["figure"]["value"] <= extra["figure"]["high"]


def test_one_by_one_repeats_the_first_call(clock, session):
    used = session(clock(0.0), itertools.repeat(0.001))
    found, _ = one_by_one(Limits(3, 20))(used, CALLS)
    assert (found.warmup, found.iterations, len(used.seen)) == (3, 20, 23)
    assert all(inputs is CALLS[0] for inputs in used.seen)


def test_streams_are_in_flight_at_the_same_time():
    """Each call waits until the other stream's has begun."""
    both = threading.Barrier(2, timeout=20)
    ends, times = run_streams([lambda _: both.wait()] * 2, {}, Limits(1, 10, 0.01))
    assert len(ends) == len(times) == 20
    assert ends == sorted(ends)


def test_an_error_in_one_stream_ends_all_and_is_raised():
    def broken(_):
        raise EdgekitError("It broke.")

    with pytest.raises(EdgekitError, match="It broke"):
        run_streams([broken, lambda _: time.sleep(0.001)], {}, Limits(1, None, 60.0))


def test_a_rate_is_samples_by_time():
    found = modes._rate([0.01 * (n + 1) for n in range(120)], batch=4)
    assert (found["value"], found["low"], found["high"]) == pytest.approx((400, 400, 400))


def test_a_rate_that_varies_has_an_interval():
    steps = np.tile([0.01] * 10 + [0.02] * 10, 12).cumsum()
    found = modes._rate([float(end) for end in steps], batch=1)
    assert found["value"] == pytest.approx(1 / 0.015)
    assert found["low"] <= found["value"] <= found["high"]

"""Latency: statistics on a clock that we turn, and entries for what cannot run."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
import torch

from edgekit import latency, machine, table
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError
from edgekit.latency import Settings, measure, time_source
from edgekit.model import Input, Model
from edgekit.targets.runtimes import torch as runtime


class Clock:
    """A call takes the next of its durations, in seconds."""

    def __init__(self, *durations):
        self.now, self.calls, self.durations = 0.0, 0, durations

    def __call__(self):
        return self.now

    def work(self):
        self.now += self.durations[self.calls % len(self.durations)]
        self.calls += 1


@pytest.fixture
def clock(monkeypatch):
    def make(*durations):
        made = Clock(*durations)
        monkeypatch.setattr(latency.time, "perf_counter", made)
        return made

    return make


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


@pytest.fixture
def linear():
    return Model(torch.nn.Linear(4, 2), (Input("input", (1, 4)),), ("y",), "linear")


SETTINGS = Settings({"input": np.ones((1, 4), np.float32)}, 1, 10, 0.01)


def test_the_source_is_timed_eagerly_and_compiled(linear, monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "disable", False)
    before = torch.get_num_threads()
    entries = time_source(linear, SETTINGS)
    assert [e["runtime"] for e in entries][-1] == "torch.compile"
    assert [e["threads"] for e in entries[:-1]] == machine.thread_counts()
    assert {e["status"] for e in entries[:-1]} == {"measured"}
    assert entries[0]["latency_ms"]["iterations"] == 10
    if shutil.which("g++"):
        assert entries[-1]["status"] == "measured"
    assert torch.get_num_threads() == before


def test_what_cannot_be_compiled_hides_no_other(linear, monkeypatch):
    class Broken(runtime.Eager):
        def infer(self, inputs):
            raise EdgekitError("torch.compile cannot run here.", "There is no compiler.")

    monkeypatch.setattr(runtime, "Compiled", Broken)
    *eager, compiled = time_source(linear, SETTINGS)
    assert compiled["status"] == "failed: There is no compiler."
    assert all(entry["status"] == "measured" for entry in eager)


def test_peak_memory_sees_a_large_array():
    with machine.peak_memory() as found:
        np.ones(64 * 2**20 // 8).sum()
    if found.added_mb is None:
        pytest.skip("this system does not tell its peak")
    assert 60 < found.added_mb < 90


class Session:
    """A runtime's session whose call takes so many seconds of a clock that we turn."""

    states = ()

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def infer(self, inputs):
        self.clock.now += next(self.seconds)


def test_two_artifacts_take_turns(clock, monkeypatch):
    turning = clock(0.0)
    paces = {"quick": itertools.repeat(0.002), "slow": itertools.cycle([0.001, *[0.004] * 3])}
    opened = lambda runtime, path, threads: Session(turning, paces[path])  # noqa: E731
    monkeypatch.setattr(latency, "load", opened)
    found = latency.paired("quick", "slow", "any", Settings({}, 0, 100, 1e9), threads=1)
    assert (found.ratio, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (found.first_ms, found.second_ms) == pytest.approx((2, 4))
    assert found.rounds == latency.ROUNDS
    short = latency.paired("quick", "slow", "any", Settings({}, 0, 10, 1e-9), threads=1)
    assert short.rounds == 3


def test_a_slower_artifact_is_called_slower():
    text = table.against_float({"ratio": 1.12, "float": "fp32"})
    assert text == "1.12 of fp32: slower than fp32"
    assert table.against_float({"ratio": 0.62, "float": "fp16"}) == "0.62 of fp16"


def test_a_build_tells_how_int8_compares_with_float(cpu_bundle):
    (row,) = Bundle.open(cpu_bundle).manifest.rows
    for entry in row.latency:
        compared = entry["to_float"]
        assert compared["float"] == "fp32"
        assert 0 < compared["low"] <= compared["ratio"] <= compared["high"]
        assert table.against_float(compared) in table._brief(entry)

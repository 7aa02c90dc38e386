"""Cell: what a row says of device time, energy, a stream's phases and failure, by fake runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import EdgekitError
from edgekit.latency import Plan, cell
from edgekit.latency.cell import Cell, energy, measure_cell
from edgekit.latency.inputs import Point
from edgekit.latency.modes import one_by_one, throughput_rows
from edgekit.latency.plan import Limits
from edgekit.latency.subjects import Candidate
from edgekit.model import BATCH, State
from edgekit.targets.runtimes import Runtime

POINT = Point(({"x": np.ones((2, 3), np.float32)},))
LIMITS = Limits(5, 10, 0.05)
PLAN = Plan(limits=LIMITS)


class Device(Runtime):
    """A session that copies to a device; each call takes one more millisecond there."""

    def __init__(self, states=()):
        self.calls, self.kinds, self.carried = 0, [], states

    @property
    def batch(self):
        return None

    @property
    def states(self):
        return self.carried

    def device_times(self):
        return {"to_device": 0.1, "compute": float(self.calls), "to_host": 0.2}

    def infer(self, inputs):
        self.calls += 1
        self.kinds.append({name: value.shape for name, value in inputs.items()})
        return {state.output: inputs[state.name] + 1 for state in self.carried}


def candidate(opens, runtime="tensorrt"):
    profiled = lambda inputs, threads: None  # noqa: E731
    return Candidate("m.plan", "rtx-4090", runtime, "", Path("m.plan"), opens, profiled)


def rows_of(opens, plan=PLAN, **changes):
    made = Cell(candidate(opens, **changes), None, POINT)
    return measure_cell(made, plan, one_by_one(LIMITS))


def test_copies_are_apart_from_computing():
    session = Device()
    (row,) = rows_of(lambda threads: session)
    first = 1 + 5 + 10
    middle = np.median(range(first + 1, first + cell.DEVICE_CALLS + 1))
    assert row["device_ms"] == {"to_device": 0.1, "compute": middle, "to_host": 0.2}
    assert (row["batch"], row["threads"], row["target"]) == (2, None, "rtx-4090")


def test_a_stream_has_a_row_for_each_kind_of_call():
    state = State("past", (BATCH, 4))
    session = Device((state,))
    prompt, step = rows_of(lambda threads: session)
    assert [prompt["phase"], step["phase"]] == ["prefill", "step"]
    assert prompt["cold"] == step["cold"]
    assert session.kinds[0] == {"x": (2, 3), "past": (2, 4)}
    assert session.kinds[-1] == {"x": (2, 1), "past": (2, 4)}


def test_a_failure_is_a_row():
    def broken(threads):
        raise EdgekitError("It cannot be opened.", "There is no GPU.")

    (row,) = rows_of(broken)
    assert row["status"] == "failed: It cannot be opened. There is no GPU."
    assert row["artifact"] == "m.plan"


def test_what_gives_no_profile_says_so():
    (row,) = rows_of(lambda threads: Device(), Plan(limits=LIMITS, profile=True))
    assert row["profile"] is None
    assert row["profile_why"] == "tensorrt gives no times of layers"


class Metered(cell.Watch):
    """A watch whose meter saw thirty joules."""

    def report(self):
        meter = {"meter": "NVML", "joules": 30.0, "watts": 15.0, "rails": {}, "why": None}
        return {**super().report(), "energy": meter}


def test_energy_is_that_of_a_sample_among_all_calls_that_the_meter_saw(monkeypatch):
    monkeypatch.setattr(cell, "Watch", Metered)
    (row,) = rows_of(lambda threads: Device())
    assert row["energy"]["meter"] == "NVML"
    assert row["energy"]["joules_per_inference"] == pytest.approx(30 / (2 * (10 + 5)))
    made = Cell(candidate(lambda threads: Device()), None, None)
    (row,) = throughput_rows(made, None, None, [POINT], 3, Limits(5, 10, 60))
    assert row["iterations"] == 30
    assert row["energy"]["joules_per_inference"] == pytest.approx(30 / (2 * 3 * (10 + 5)))


def test_without_a_meter_it_says_why():
    found = energy({"energy": {"meter": None, "joules": None, "why": "no meter: none"}}, 10)
    assert found == {"meter": None, "why": "no meter: none"}


def test_each_runtime_is_watched_by_the_meter_of_what_computes(monkeypatch):
    seen = []

    class Noted(cell.Watch):
        def __init__(self, **options):
            seen.append(options)
            super().__init__(**options)

    monkeypatch.setattr(cell, "Watch", Noted)
    for runtime in ("onnxruntime", "onnxruntime_cuda", "coreml"):
        rows_of(lambda threads: Device(), runtime=runtime)
    assert seen == [{"device": "cpu"}, {"device": "gpu"}, {"device": None}]

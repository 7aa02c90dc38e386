"""Artifacts: entries of a build, for the source too, and for what cannot run."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from edgekit import machine, table
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError
from edgekit.latency import Settings, time_source
from edgekit.model import Input, Model
from edgekit.targets.runtimes import torch as runtime


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

"""edgekit inspect --spikes: what it prints, writes as JSON, and refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

FACTORY = """
from torch import nn
from edgekit.compress.modules.qcfs import QCFS

def spiking():
    return nn.Sequential(nn.Linear(6, 8), QCFS(8, -1, 4, 0.25, False, "folded"), nn.Linear(8, 3))

def plain():
    return nn.Sequential(nn.Linear(6, 3))
"""
FAST = ("--input", "input:1x6", "--random-weights")


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "firing_models.py").write_text(FACTORY)
    values = np.random.default_rng(0).standard_normal((9, 6)).astype("float32")
    np.savez(tmp_path / "data.npz", input=values)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_tables(edgekit, here):
    result = edgekit("inspect", "firing_models:spiking", "--spikes", "data.npz", *FAST)
    assert result.code == 0, result.err
    for words in ("the mean of 9 samples", "spike rate", "synaptic operations", "real numbers"):
        assert words in result.out
    assert result.out.count("estimate") == 2
    assert "Measured here: ONNX in fp32, folded" in result.out


def test_json_has_the_same(edgekit, here):
    result = edgekit("inspect", "firing_models:spiking", "--spikes", "data.npz", "--samples", 5,
                     *FAST, "--json")  # fmt: skip
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert (told["samples"], told["macs"], told["analog_macs"]) == (5, 6 * 8 + 8 * 3, 6 * 8)
    assert [layer["unit"] for layer in told["layers"]] == ["", "1"]
    assert told["latency"][0]["runtime"] == "onnxruntime"
    assert told["latency"][0]["latency_ms"]["p50"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("firing_models:plain", "--spikes", "data.npz"),
            ("no spikes", "--pass spiking"),
        ),
        (("firing_models:spiking", "--spikes", "none.npz"), ("none.npz does not exist",)),
        (("firing_models:spiking", "--samples", "4"), ("--samples", "--spikes")),
    ],
    ids=["no units", "no data", "samples alone"],
)
def test_refused(arguments, words, edgekit, here):
    result = edgekit("inspect", *arguments, *FAST)
    assert result.code == 2
    for word in words:
        assert word in result.err

"""unrolled_fire: neurons without a loop fire the same, at any length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgekit.converters.rewrites.unrolled_fire import STEPS, rewrite
from edgekit.model import Dim
from edgekit.quantize.fp16 import rewrite_fp16
from edgekit.quantize.spiking.neurons import IF, LIF, PLIF, Neuron

ANY = Dim("length", 1, 4, 8)


class Layer(torch.nn.Module):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor, state: Tensor) -> Any:
        return self.neuron.forward_with(x, state)


def _feed(length: int) -> dict[str, Any]:
    random = np.random.default_rng(length)
    x, state = random.standard_normal((2, length, 5)), random.standard_normal((2, 5))
    return {"x": (2 * x).astype("float32"), "state": state.astype("float32")}


@pytest.mark.parametrize(("kind", "hard"), [(IF, False), (LIF, True), (PLIF, False)])
@pytest.mark.parametrize("length", [ANY, 1, 9])
def test_spikes_and_state_are_equal(kind: Any, hard: bool, length: Any, written: Any) -> None:
    form = written(Layer(kind(5, hard=hard)), rewrite, _feed(4), length)
    assert not form.is_whole
    for size in (1, 2, 5, 8) if length is ANY else (length,):
        feed = _feed(size)
        assert form.error([feed]) == 0
    assert form.graph.run(feed)["y"].any()


@pytest.mark.parametrize("length", [STEPS + 1, Dim("length", 1, 64, STEPS + 1)])
def test_longer_lengths_are_left_as_they_are(length: Any, written: Any) -> None:
    assert written(Layer(IF(5)), rewrite, _feed(4), length).is_whole


def test_half_precision_keeps_the_potential_in_float32(written: Any) -> None:
    """A potential that currents change by less than float16 can add to it."""
    feed = _feed(24)
    feed["x"] = np.full_like(feed["x"], np.float16(1e-3))
    feed["state"] = np.full_like(feed["state"], 8)
    form = written(Layer(IF(5, 100.0)), lambda g: rewrite_fp16(rewrite(g)), feed, 24)
    want, got = form.graph.run(feed), form.written.run(feed)
    np.testing.assert_array_equal(got["last"], want["last"])
    assert want["last"].min() > 8.02

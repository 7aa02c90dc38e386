"""causal_attention: grouped, windowed, and over a past of any length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgekit.converters.rewrites.causal_attention import rewrite
from edgekit.model import Dim, Input, Model, State
from edgekit.operators.causal_attention import causal_attention

LENGTH, PAST = Dim("length", 1, 4, 64), Dim("past", 0, 4, 128)


class Layers(torch.nn.Module):
    """Two of one size, so that the second has the mask of the first."""

    def __init__(self, window: int | None) -> None:
        super().__init__()
        self.window = window

    def forward(self, query: Tensor, key: Tensor, past_key: Tensor) -> tuple[Tensor, Tensor]:
        key = torch.cat([past_key, key], 2)
        once = causal_attention(query, key, key, 0.7, self.window)
        return causal_attention(once, key, key, 0.7, self.window), key


def _arrays(length: int, past: int, heads: int) -> dict[str, Any]:
    draw = np.random.default_rng(0).standard_normal
    return {
        "query": draw((1, heads, length, 6)),
        "key": draw((1, 2, length, 6)),
        "past_key": draw((1, 2, past, 6)),
    }


@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("length", "past"), [(LENGTH, PAST), (7, PAST), (7, 5), (1, 2), (1, 8)])
def test_is_equal_and_gone(heads: int, window: int | None, length: Any, past: Any) -> None:
    inputs = (
        Input("query", (1, heads, length, 6), "float64"),
        Input("key", (1, 2, length, 6), "float64"),
    )
    states = (State("past_key", (1, 2, past, 6), "float64"),)
    graph = Model(Layers(window), inputs, ("y",), "test", states=states).export()
    written = rewrite(graph)
    assert "edgekit" not in str(written.exported.graph)
    for steps in (1, 2, 9) if length is LENGTH else (length,):
        for before in (0, 1, 12) if past is PAST else (past,):
            feed = _arrays(steps, before, heads)
            want, got = graph.run(feed), written.run(feed)
            for name, value in want.items():
                np.testing.assert_allclose(got[name], value, rtol=1e-12, atol=1e-12)


def test_layers_share_a_mask() -> None:
    inputs = (Input("query", (1, 4, LENGTH, 6)), Input("key", (1, 2, LENGTH, 6)))
    states = (State("past_key", (1, 2, PAST, 6)),)
    graph = rewrite(Model(Layers(3), inputs, ("y",), "test", states=states).export())
    calls = [str(node.target) for node in graph.exported.graph.nodes]
    assert calls.count("aten.gt.Scalar") == 1

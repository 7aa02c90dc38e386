"""split_as_slices: equal, and no split left."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.converters.rewrites import split_as_slices
from edgekit.model import BATCH, Input, Model


class Parts(torch.nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        first, second, *others = self.how(x)
        return torch.cat([second * 2, first, *others], -1)


@pytest.mark.parametrize(
    "how",
    [
        lambda x: x.split([1, 4, 2], -1),
        lambda x: x.split(3, -1),
        lambda x: x.chunk(2, -1),
    ],
)
def test_equal_without_splits(how):
    graph = Model(Parts(how), (Input("x", (BATCH, 3, 7)),), ("y",), "parts").export()
    sliced = split_as_slices.rewrite(graph)
    assert not any(
        "split" in str(n.target) or "chunk" in str(n.target) for n in sliced.exported.graph.nodes
    )
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 7)).astype(np.float32)}
    np.testing.assert_array_equal(sliced.run(x)["y"], graph.run(x)["y"])

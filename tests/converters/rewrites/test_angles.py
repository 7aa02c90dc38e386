"""angles: the same in float32, and in half precision as exact as float32 lets it be."""

from __future__ import annotations

import numpy as np
import torch

from edgekit.converters.rewrites import angles
from edgekit.model import Input, Model
from edgekit.quantize.fp16 import rewrite_fp16


class Embedding(torch.nn.Module):
    """Of a timestep up to 1000, as diffusion models have it, and a layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = torch.nn.Buffer(torch.logspace(0, -4, 16))
        self.layer = torch.nn.Linear(32, 4)

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        turned = timestep[:, None] * self.rates[None, :]
        result: torch.Tensor = self.layer(torch.cat([turned.sin(), turned.cos()], -1))
        return result


def test_half_precision_keeps_large_angles() -> None:
    graph = Model(Embedding().eval(), (Input("timestep", (3,)),), ("y",), "m").export()
    steps = {"timestep": np.array([997.3, 501.7, 3.1], np.float32)}
    exact = graph.run(steps)["y"]
    marked = angles.rewrite(graph)
    assert np.array_equal(marked.run(steps)["y"], exact)
    assert np.abs(rewrite_fp16(marked).run(steps)["y"] - exact).max() < 2e-3
    assert np.abs(rewrite_fp16(graph).run(steps)["y"] - exact).max() > 1e-2

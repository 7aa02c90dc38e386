"""converters/rewrites/composites: equal to the operators that they replace."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.converters.rewrites.composites import rewrite
from edgekit.model import Input, Model


class AddCMul(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(torch.addcmul(x, x, x.flip(0)), x, x, value=0.5)


class Clamp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low = torch.nn.Buffer(torch.tensor(-0.5))
        self.none = torch.nn.Buffer(torch.tensor(torch.inf))
        self.high = torch.nn.Buffer(torch.linspace(0, 1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.clamp(x, self.low, self.high) + torch.clamp(x, -self.none, self.none)
        return both + torch.clamp(x, max=self.high) + torch.clamp(x, min=self.low)


@pytest.mark.parametrize("module", [AddCMul(), Clamp()], ids=lambda m: type(m).__name__)
def test_composites_are_equal_and_gone(module: torch.nn.Module) -> None:
    graph = Model(module, (Input("x", (3, 8)),), ("y",), "test").export()
    rewritten = rewrite(graph)
    names = {str(node.target) for node in rewritten.exported.graph.nodes}
    assert not names & {"aten.addcmul.default", "aten.clamp.Tensor"}
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    np.testing.assert_allclose(rewritten.run({"x": x})["y"], graph.run({"x": x})["y"], rtol=1e-6)

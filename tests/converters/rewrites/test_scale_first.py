"""converters/rewrites/scale_first: equal in fp32, and finite where fp16 was not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.converters.rewrites.scale_first import rewrite
from edgekit.model import Input, Model


class Scores(torch.nn.Module):
    def __init__(self, divide: bool) -> None:
        super().__init__()
        self.divide = divide

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = x @ x.transpose(-2, -1)
        return scores / 16.0 if self.divide else scores * 0.0625


@pytest.mark.parametrize("divide", [False, True])
def test_scores_are_equal_and_fit_float16(divide: bool) -> None:
    graph = Model(Scores(divide), (Input("x", (1, 4, 256)),), ("y",), "test").export()
    first = rewrite(graph)
    x = np.full((1, 4, 256), 20.0, dtype=np.float32)
    np.testing.assert_allclose(first.run({"x": x})["y"], graph.run({"x": x})["y"], rtol=1e-6)
    half = torch.from_numpy(x).half()
    assert torch.isinf(graph.exported.module(check_guards=False)(x=half)).all()
    assert torch.isfinite(first.exported.module(check_guards=False)(x=half)).all()


class Shared(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = x @ x.transpose(-2, -1)
        return scores * 0.5 + scores


class Growing(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ x.transpose(-2, -1)) * 2.0


@pytest.mark.parametrize("module", [Shared(), Growing()], ids=["shared", "growing"])
def test_other_products_are_left_alone(module: torch.nn.Module) -> None:
    graph = Model(module, (Input("x", (1, 4, 8)),), ("y",), "test").export()
    before, after = (
        [str(n.target) for n in g.exported.graph.nodes] for g in (graph, rewrite(graph))
    )
    assert before == after

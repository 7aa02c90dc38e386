"""rank5: equal in float64, and no tensor above rank 5 left."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from edgekit.converters.rewrites import rank5
from edgekit.model import BATCH, Dim, Graph, Input


class Case(torch.nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(torch.randn(7, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight) if self.function is _linear else self.function(x)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    split = x.reshape(2, 2, 2, 3, 4, 5).transpose(2, 3)
    return torch.nn.functional.linear(split, weight).reshape(8, 12, 7)


def _windows(x: Tensor) -> Tensor:
    x = x.view(2, 2, 2, 2, 6, 5).permute(0, 1, 3, 2, 4, 5).contiguous()
    return x.view(-1, 2, 6, 5)


def _pooled(x: Tensor) -> Tensor:
    return x.view(2, 2, 2, 3, 4, 5).permute(0, 3, 1, 4, 2, 5).amax(dim=4)


def _unbound(x: Tensor) -> Tensor:
    q, k = x.reshape(2, 2, 2, 3, 4, 5).permute(1, 0, 4, 2, 3, 5).unbind(0)
    return q @ k.transpose(-1, -2)


def _scrambled(x: Tensor) -> Tensor:
    return x.view(2, 2, 2, 3, 2, 2, 5).permute(6, 4, 2, 0, 5, 3, 1).reshape(5, -1)


def _broadcast(x: Tensor) -> Tensor:
    grid = x.view(2, 2, 2, 3, 4, 5)
    return (grid + grid.sum(5, keepdim=True) * 2).softmax(4).view(8, 12, 5)


CASES: list[Callable[..., Tensor]] = [_windows, _pooled, _unbound, _scrambled, _broadcast, _linear]


def _graph(function: Callable[[Tensor], Tensor], batch: int | Dim = 2) -> Graph:
    spec = Input("x", (batch, 12, 4, 5), "float64")
    example = torch.zeros(spec.concrete(2), dtype=torch.float64)
    dims = {0: torch.export.Dim("batch")} if isinstance(batch, Dim) else {}
    exported = torch.export.export(
        Case(function).double(), (), {"x": example}, dynamic_shapes={"x": dims}
    )
    return Graph(exported.run_decompositions({}), (spec,), ("y",))


def _highest(graph: Graph) -> int:
    values = [node.meta.get("val") for node in graph.exported.graph.nodes]
    return max(value.ndim for value in values if isinstance(value, Tensor))


@pytest.mark.parametrize("function", CASES)
def test_is_equal_and_low(function: Callable[[Tensor], Tensor]) -> None:
    graph = _graph(function)
    lowered = rank5.rewrite(graph)
    x = {"x": np.random.default_rng(0).standard_normal((2, 12, 4, 5))}
    assert _highest(graph) > 5
    assert _highest(lowered) <= 5
    np.testing.assert_allclose(lowered.run(x)["y"], graph.run(x)["y"], rtol=1e-13, atol=1e-13)


def test_keeps_a_dynamic_batch() -> None:
    def windows(x: Tensor) -> Tensor:
        x = x.view(-1, 2, 6, 2, 2, 5).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, 12, 5)

    graph = _graph(windows, BATCH)
    lowered = rank5.rewrite(graph)
    x = {"x": np.random.default_rng(0).standard_normal((3, 12, 4, 5))}
    assert _highest(lowered) <= 5
    np.testing.assert_array_equal(lowered.run(x)["y"], graph.run(x)["y"])


def test_leaves_low_ranks_alone() -> None:
    graph = _graph(lambda x: x.permute(0, 2, 1, 3).reshape(2, 4, 60))
    assert rank5.rewrite(graph) is graph


def test_leaves_what_it_has_no_rule_for() -> None:
    graph = _graph(lambda x: x.view(2, 2, 2, 3, 4, 5).flip(4).permute(0, 2, 1, 3, 4, 5).clone())
    lowered = rank5.rewrite(graph)
    x = {"x": np.random.default_rng(0).standard_normal((2, 12, 4, 5))}
    assert any("flip" in str(node.target) for node in lowered.exported.graph.nodes)
    np.testing.assert_array_equal(lowered.run(x)["y"], graph.run(x)["y"])

"""Tidying: fewer nodes, the same values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch

from edgekit.model import Dim, Graph, Input, Model

LENGTH = Dim("length", 1, 4, 64)


class Of(torch.nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(torch.randn(2, 3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.weight)


def exported(function: Callable[..., torch.Tensor]) -> tuple[Graph, Counter[str]]:
    """The graph, checked against the function, and how often it has each operator."""
    torch.manual_seed(0)
    module = Of(function)
    x = torch.randn(2, 5, 4)
    graph = Model(module, (Input("x", (2, LENGTH, 4)),), ("y",), "test").export()
    with torch.no_grad():
        expected = module(x).numpy()
    np.testing.assert_allclose(graph.run({"x": x.numpy()})["y"], expected, rtol=1e-6)
    nodes = [node for node in graph.exported.graph.nodes if node.op == "call_function"]
    return graph, Counter(str(node.target).removeprefix("aten.") for node in nodes)


def test_transposes_that_undo_each_other_go() -> None:
    def twice(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return (x.transpose(1, 2).transpose(-1, -2) + 1).transpose(1, 2)

    assert exported(twice)[1]["transpose.int"] == 1


def test_other_transposes_stay() -> None:
    def turn(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).transpose(0, 1)

    assert exported(turn)[1]["transpose.int"] == 2


def test_a_split_part_that_is_turned_back_is_never_turned() -> None:
    def gated(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        value, gate = x.transpose(1, 2).chunk(2, dim=1)
        return value.cumsum(-1).transpose(1, 2) * gate.transpose(1, 2)

    assert exported(gated)[1]["transpose.int"] == 2  # those around the sum


def test_a_split_that_nothing_turns_back_keeps_its_one_transpose() -> None:
    def parts(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        a, b = x.transpose(1, 2).chunk(2, dim=1)
        return a * b

    assert exported(parts)[1]["transpose.int"] == 1


def test_slices_of_everything_go_and_others_stay() -> None:
    def sliced(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return x[:, -x.shape[1] :][:, 0:, 1:]

    assert exported(sliced)[1]["slice.Tensor"] == 1


def test_a_rearranged_weight_becomes_a_weight() -> None:
    def wide(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        h = torch.nn.functional.linear(x, weight.reshape(6, 4))
        return torch.nn.functional.linear(h, weight.permute(2, 0, 1).reshape(4, 6))

    graph, counts = exported(wide)
    assert counts["linear.default"] == 2
    assert set(counts) == {"linear.default"}
    assert len(graph.exported.state_dict) == 2

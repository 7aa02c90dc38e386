"""real_rotary: equal to complex arithmetic in float64, and nothing complex is left."""

from __future__ import annotations

import pytest
import torch

from edgekit.converters.rewrites import real_rotary
from edgekit.errors import EdgekitError
from edgekit.model import Graph, Input, Model


class Rotary(torch.nn.Module):
    """As Qwen-Image turns queries: (b, s, h, d) by angles (s, d / 2)."""

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(tokens), torch.rand(channels // 2)).double()
        self.turns = torch.polar(torch.ones_like(angles), angles)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turns = self.turns[1:].reshape(1, -1, self.turns.shape[1]).unsqueeze(2)
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns).flatten(3).type_as(x)


class Arithmetic(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x.double()
        z = torch.complex(x[..., 0], x[..., 1])
        w = torch.polar(x[..., 1].abs(), x[..., 0])
        sums = torch.cat([z + w, z - w.conj(), -z * 2.0, z * (1 + 2j)], 1).transpose(0, 1)
        return torch.view_as_real(sums), sums.real, (z * x[..., 1]).imag


def rewritten(module: torch.nn.Module, *shape: int, outputs: int = 1) -> tuple[Graph, Graph]:
    names = tuple(f"y{place}" for place in range(outputs))
    graph = Model(module, (Input("x", shape, "float32"),), names, "m").export()
    return graph, real_rotary.rewrite(graph)


def check(module: torch.nn.Module, *shape: int, outputs: int = 1) -> None:
    before, after = rewritten(module, *shape, outputs=outputs)
    assert any(_complex(node) for node in before.exported.graph.nodes)
    assert not any(_complex(node) for node in after.exported.graph.nodes)
    x = {"x": torch.randn(shape).numpy()}
    for name, expected in before.run(x).items():
        torch.testing.assert_close(
            torch.from_numpy(after.run(x)[name]),
            torch.from_numpy(expected),
            rtol=1e-12,
            atol=1e-12,
        )


def _complex(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_complex()


class Double(torch.nn.Module):
    """Of float32 inputs, in float64."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x.double())
        return result


def test_rotary_embedding() -> None:
    check(Double(Rotary(6, 8)), 2, 5, 3, 8)


def test_arithmetic() -> None:
    check(Arithmetic(), 2, 5, 2, outputs=3)


def test_a_graph_without_complex_numbers_is_left_alone() -> None:
    before, after = rewritten(Plain(), 1, 4)
    assert after is before


class Plain(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu()


class Unknown(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_complex(x).sqrt().abs()


def test_an_unknown_operator_is_named() -> None:
    with pytest.raises(EdgekitError, match="sqrt"):
        rewritten(Unknown(), 1, 4, 2)

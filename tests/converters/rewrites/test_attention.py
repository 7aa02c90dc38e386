"""attention written out equals torch's own, in float64, for every form it is called in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from edgekit.converters.rewrites.attention import rewrite
from edgekit.edit import Editor
from edgekit.model import Graph, Input

FUSED = "aten.scaled_dot_product_attention.default"


class Attend(torch.nn.Module):
    def __init__(self, mask=None, **options):
        super().__init__()
        self.options = options
        self.register_buffer("mask", mask)

    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, self.mask, **self.options)


def exported(module, tensors, dynamic=None) -> Graph:
    program = torch.export.export(module, tensors, dynamic_shapes=dynamic)
    inputs = tuple(Input(n, tuple(t.shape)) for n, t in zip("qkv", tensors, strict=True))
    return Graph(program.run_decompositions({}), inputs, ("y",))


def tensors(heads=4, groups=4, rows=5, columns=7):
    torch.manual_seed(0)
    shapes = ((2, heads, rows, 8), (2, groups, columns, 8), (2, groups, columns, 6))
    return tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)


additive = torch.linspace(-2, 0, 35, dtype=torch.float64).reshape(5, 7)
boolean = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) > 0.4
boolean[:, 0] = True

CASES = {
    "plain": (Attend(), tensors()),
    "scale": (Attend(scale=0.3), tensors()),
    "additive mask": (Attend(additive), tensors()),
    "boolean mask": (Attend(boolean), tensors()),
    "causal": (Attend(is_causal=True), tensors(rows=7)),
    "causal, more keys": (Attend(is_causal=True), tensors()),
    "grouped keys": (Attend(enable_gqa=True), tensors(heads=6, groups=2)),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_in_float64(case):
    module, given = CASES[case]
    graph = exported(module, given)
    assert len(list(Editor(graph).calls(FUSED))) == 1
    written = rewrite(graph)
    assert not list(Editor(written).calls(FUSED))
    expected = module(*given)
    found = written.exported.module(check_guards=False)(*given)
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_a_dynamic_length_is_left_whole():
    length = torch.export.Dim("length", min=2)
    shapes = ({}, {2: length}, {2: length})
    graph = exported(Attend(), tensors(), shapes)
    assert len(list(Editor(rewrite(graph)).calls(FUSED))) == 1

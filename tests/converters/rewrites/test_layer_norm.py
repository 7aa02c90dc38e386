"""layer_norm: equal in float64, and in fp32 inside an fp16 graph."""

import pytest
import torch
from torch import nn

from edgekit.converters.rewrites import layer_norm
from edgekit.edit import Editor
from edgekit.model import Input, Model
from edgekit.quantize.fp16 import rewrite_fp16


def graph_of(module, dtype="float64"):
    return Model(module, (Input("input", (2, 5, 8), dtype),), ("y",), "norm").export()


@pytest.mark.parametrize(
    "norm",
    [nn.LayerNorm(8), nn.LayerNorm((5, 8), eps=1e-3), nn.LayerNorm(8, elementwise_affine=False)],
)
def test_equal_in_float64(norm):
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    graph = graph_of(norm.double())
    written = layer_norm.rewrite(graph)
    assert not list(Editor(written).calls("aten.layer_norm.default"))
    x = torch.randn(2, 5, 8, dtype=torch.float64) * 3 + 1
    one, two = (g.exported.module(check_guards=False)(input=x) for g in (graph, written))
    assert torch.allclose(one, two, atol=1e-12)


def test_large_values_survive_fp16():
    """The square of 2000 overflows float16: what was written out must stay in fp32."""
    norm = nn.LayerNorm(8)
    half = rewrite_fp16(layer_norm.rewrite(graph_of(norm, "float32")))
    x = torch.randn(2, 5, 8) * 2000
    result = half.exported.module(check_guards=False)(input=x)
    assert torch.allclose(result, norm(x), atol=5e-3)

"""conv_as_linear: equal in float64, for patches and for single pixels; nothing else is touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.converters.rewrites.conv_as_linear import rewrite
from edgekit.edit import Editor
from edgekit.model import BATCH, Input, Model
from edgekit.quantize.sites import find_sites

X = np.random.default_rng(0).standard_normal((3, 4, 8, 12))


def export(conv, batch):
    module = torch.nn.Sequential(conv.double(), torch.nn.ReLU())
    inputs = (Input("input", (batch, 4, 8, 12), "float64"),)
    return Model(module, inputs, ("y",), "test").export()


@pytest.mark.parametrize("batch", [3, BATCH])
@pytest.mark.parametrize(
    ("kernel", "bias"), [((4, 4), True), ((2, 3), False), ((1, 1), True), ((8, 12), False)]
)
def test_equal_in_float64(batch, kernel, bias):
    torch.manual_seed(0)
    graph = export(torch.nn.Conv2d(4, 5, kernel, stride=kernel, bias=bias), batch)
    rewritten = rewrite(graph)
    before, after = graph.run({"input": X})["y"], rewritten.run({"input": X})["y"]
    assert before.shape == after.shape
    assert np.abs(before - after).max() < 1e-12
    assert [str(node.target) for node in Editor(rewritten).calls() if "conv" in node.name] == [
        "aten.permute.default"  # it gives the convolution's value, and has its name
    ]
    assert [site.name for site in find_sites(Editor(rewritten))] == ["0.input", "0.weight"]


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 1},
        {"kernel_size": 2, "stride": 2, "padding": 1},
        {"kernel_size": 2, "stride": 2, "groups": 2},
        {"kernel_size": 5, "stride": 5},  # pixels are left over
    ],
)
def test_other_convolutions_stay(options):
    rewritten = rewrite(export(torch.nn.Conv2d(4, 6, **options), 3))
    assert len(list(Editor(rewritten).calls("aten.conv2d.default"))) == 1


def test_one_after_another():
    torch.manual_seed(0)
    pair = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 1), torch.nn.Conv2d(6, 5, 2, stride=2))
    graph = export(pair, 3)
    rewritten = rewrite(graph)
    assert not list(Editor(rewritten).calls("aten.conv2d.default"))
    before, after = graph.run({"input": X})["y"], rewritten.run({"input": X})["y"]
    assert np.abs(before - after).max() < 1e-12

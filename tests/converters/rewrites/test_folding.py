"""batch_norm, constants and resize: each equal to what it replaces."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit.converters.rewrites import batch_norm, constants, resize
from edgekit.edit import Editor
from edgekit.model import Graph, Input

NORM = "aten._native_batch_norm_legit_no_training.default"


def exported(module: nn.Module, x: torch.Tensor) -> Graph:
    program = torch.export.export(module.eval().double(), (x,)).run_decompositions({})
    return Graph(program, (Input("x", tuple(x.shape)),), ("y",))


def agree(before: Graph, after: Graph, x: torch.Tensor) -> bool:
    one, two = (g.exported.module(check_guards=False)(x) for g in (before, after))
    return one.dtype == two.dtype == torch.float64 and torch.allclose(one, two, atol=1e-10)


def count(graph: Graph, *operators: str) -> int:
    return len(list(Editor(graph).calls(*operators)))


def norm(channels: int, affine: bool = True, one_axis: bool = False) -> nn.Module:
    layer = (nn.BatchNorm1d if one_axis else nn.BatchNorm2d)(channels, affine=affine)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    if affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return layer


class Twice(nn.Module):
    """The convolution feeds the norm and something else, so it cannot be folded."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), norm(4)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


@pytest.mark.parametrize(
    ("module", "left"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm(4)), 0),
        (nn.Sequential(nn.Conv2d(3, 4, 3), norm(4, affine=False), nn.ReLU()), 0),
        (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, padding="same"), norm(6)), 0),
        (nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.Conv2d(4, 2, 1), norm(2)), 0),
        (nn.Sequential(norm(3), nn.Conv2d(3, 4, 3)), 1),
        (Twice(), 1),
    ],
)
def test_batch_norm_folds_into_the_convolution_before_it(module, left):
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    graph = exported(module, x)
    folded = batch_norm.rewrite(graph)
    assert count(graph, NORM) > left or left
    assert count(folded, NORM) == left
    assert agree(graph, folded, x)


def swapped(y):
    return y.transpose(1, 2)


def cut(y):
    return y[:, :, :3]


class Sequences(nn.Module):
    """A layer, what moves its values, and a norm of axis 1."""

    def __init__(self, layer, between, channels):
        super().__init__()
        self.layer, self.between, self.norm = layer, between, norm(channels, one_axis=True)

    def forward(self, x):
        return self.norm(self.between(self.layer(x)))


@pytest.mark.parametrize(
    ("module", "left"),
    [
        (Sequences(nn.Linear(3, 4, bias=False), swapped, 4), 0),
        (Sequences(nn.Linear(3, 4), swapped, 4), 0),
        (Sequences(nn.Conv1d(7, 4, 3, padding=2), cut, 4), 0),
        (Sequences(nn.Linear(3, 4), cut, 7), 1),  # of positions
        (Sequences(nn.Conv1d(7, 4, 1), swapped, 3), 1),
    ],
)
def test_batch_norm_of_sequences_folds_into_the_layer_before_it(module, left):
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    graph = exported(module, x)
    folded = batch_norm.rewrite(graph)
    assert (count(graph, NORM), count(folded, NORM)) == (1, left)
    assert agree(graph, folded, x)


class Bias(nn.Module):
    """A bias computed from parameters alone, and a product that needs the input."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 4))
        self.register_buffer("index", torch.randint(0, 9, (5, 5)))

    def forward(self, x):
        bias = (self.table * 2)[self.index].permute(2, 0, 1).exp()
        return x @ bias + bias.sum()


def test_constants_are_computed_once():
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    graph = exported(Bias(), x)
    folded = constants.rewrite(graph)
    assert count(graph) > 5
    assert [str(node.target) for node in Editor(folded).calls()] == [
        "aten.matmul.default",
        "aten.add.Tensor",
    ]
    assert agree(graph, folded, x)
    assert "table" not in folded.exported.state_dict


def test_large_constants_stay_computed(monkeypatch):
    graph = exported(Bias(), torch.randn(2, 4, 5, 5, dtype=torch.float64))
    monkeypatch.setattr(constants, "LIMIT", 10)
    assert count(constants.rewrite(graph)) > 2


class Resize(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, x):
        return F.interpolate(x, **self.options)


@pytest.mark.parametrize(
    "options",
    [
        {"size": (7, 12), "mode": "bicubic"},
        {"size": (7, 12), "mode": "bicubic", "align_corners": True},
        {"size": (5, 3), "mode": "bicubic", "antialias": True},
        {"size": (4, 5), "mode": "bilinear", "antialias": True},
        {"scale_factor": (1.7, 0.6), "mode": "bicubic"},
        {"scale_factor": 1.3, "mode": "bicubic", "recompute_scale_factor": True},
    ],
    ids=str,
)
def test_resize_is_two_products(options):
    x = torch.randn(2, 3, 10, 8, dtype=torch.float64)
    graph = exported(Resize(**options), x)
    written = resize.rewrite(graph)
    assert count(graph, *resize.RESIZES) == 1
    assert [str(node.target) for node in Editor(written).calls()] == ["aten.matmul.default"] * 2
    assert agree(graph, written, x)

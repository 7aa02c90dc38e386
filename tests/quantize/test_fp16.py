"""Fp16 in the graph: which operators run in which dtype, and how close the result is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.drift import compare
from edgekit.edit import Editor
from edgekit.model import Dim, Input, Model
from edgekit.quantize.fp16 import rewrite_fp16

X = np.random.default_rng(0).standard_normal((1, 6, 16)).astype(np.float32)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(16)
        self.qkv = torch.nn.Linear(16, 48)
        self.register_buffer("huge", torch.tensor([1e30]))
        self.register_buffer("order", torch.arange(6).flip(0))

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        mixed = torch.softmax(q @ k.transpose(1, 2), -1) @ v
        y = torch.minimum(mixed, self.huge) + x
        return y[:, self.order], y.argmax(-1)


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return Model(Block(), (Input("x", (1, 6, 16)),), ("y", "best"), "block").export()


@pytest.fixture(scope="module")
def half(graph):
    return rewrite_fp16(graph)


def dtypes(graph, operator):
    return {node.meta["val"].dtype for node in Editor(graph).calls(operator)}


@pytest.mark.parametrize(
    ("operator", "dtype"),
    [
        ("aten.layer_norm.default", torch.float32),
        ("aten.softmax.int", torch.float32),
        ("aten.linear.default", torch.float16),
        ("aten.matmul.default", torch.float16),
        ("aten.add.Tensor", torch.float16),
    ],
)
def test_each_operator_runs_in_its_dtype(half, operator, dtype):
    assert dtypes(half, operator) == {dtype}


def test_close_to_the_source_and_not_equal(graph, half):
    drift = compare([graph.run({"x": X})], [half.run({"x": X})])
    assert 0.9999 < drift.cosine < 1
    assert half.precision == "fp16"


def test_inputs_and_outputs_keep_their_dtypes(half):
    result = half.run({"x": X})
    assert {name: value.dtype.name for name, value in result.items()} == {
        "y": "float32",
        "best": "int64",
    }


def test_weights_are_stored_in_half_and_clamped_to_its_range(half):
    stored = half.exported.state_dict
    assert stored["qkv.weight_float16"].dtype == torch.float16
    assert "qkv.weight" not in stored
    assert stored["huge_float16"].item() == torch.finfo(torch.float16).max
    assert stored["norm.weight"].dtype == torch.float32


class Causal(torch.nn.Module):
    """A convolution over what came before, of any length."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 4, 3, groups=4)

    def forward(self, x):
        return self.conv(torch.nn.functional.pad(x, (2, 0))).reshape(1, 2, -1)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_length_that_varies_stays_so_behind_a_pad(length):
    spec = Input("x", (1, 4, Dim("length", 1, 4, 16)))
    graph = Model(Causal(), (spec,), ("y",), "causal").export()
    x = {"x": np.random.default_rng(0).standard_normal((1, 4, length)).astype(np.float32)}
    half = rewrite_fp16(graph).run(x)["y"]
    np.testing.assert_allclose(half, graph.run(x)["y"], atol=1e-2)

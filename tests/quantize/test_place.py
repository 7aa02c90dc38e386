"""INT8 in the graph: the equation, the sharing, and what each runtime's rules take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.data import open_data
from edgekit.drift import compare
from edgekit.edit import Editor
from edgekit.model import Input, Model
from edgekit.quantize.effort import plan_for
from edgekit.quantize.place import (
    DEQUANTIZE,
    DEQUANTIZE_CHANNELS,
    QUANTIZE,
    count_quantized,
    kept_float,
    place,
)
from edgekit.quantize.post_training import quantize
from edgekit.quantize.schemes import SCHEMES
from edgekit.targets.rules import RULES

IMAGES = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)


class Net(torch.nn.Module):
    """A convolution, three linears that share an input, and a linear on rank 2."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 4, stride=4)
        self.q, self.k, self.v = (torch.nn.Linear(8, 8) for _ in range(3))
        self.head = torch.nn.Linear(8, 5, bias=False)

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)
        mixed = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1) @ self.v(x)
        return self.head(mixed.mean(1))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return Model(Net(), (Input("x", (1, 3, 8, 8)),), ("y",), "net").export()


@pytest.fixture(scope="module")
def table(graph):
    data = open_data(IMAGES, graph.inputs, None)
    return quantize(graph, data, plan_for(SCHEMES["int8"], "quick", None)).table


def calls(graph, operator):
    return list(Editor(graph).calls(str(operator)))


@pytest.mark.parametrize("runtime", sorted(name for name in RULES if RULES[name].operators))
def test_close_to_the_source_and_not_equal(graph, table, runtime):
    placed = place(graph, table, RULES[runtime])
    inputs = {"x": IMAGES[:1]}
    drift = compare([graph.run(inputs)], [placed.run(inputs)])
    assert 0.999 < drift.cosine < 1
    assert placed.precision == "int8"
    assert graph.precision == "fp32"
    assert len(calls(graph, QUANTIZE)) == 0


def test_consumers_of_one_tensor_share_one_pair(graph, table):
    placed = place(graph, table, RULES["tensorrt"])
    assert len(calls(placed, QUANTIZE)) == len(calls(placed, DEQUANTIZE)) == 3
    assert len(calls(placed, DEQUANTIZE_CHANNELS)) == 5
    shared = [node for node in calls(placed, DEQUANTIZE) if len(node.users) == 3]
    assert len(shared) == 1


def test_weights_are_their_levels_times_their_scales(graph, table):
    placed = place(graph, table, RULES["coreml"])
    editor = Editor(placed)
    levels = {
        editor.tensor_name(node.args[0]): editor.tensor(node.args[0])
        for node in editor.calls(str(DEQUANTIZE_CHANNELS))
    }
    weight = graph.exported.state_dict["conv.weight"].detach().double()
    scale = torch.tensor(table.sites["conv.weight"].scale, dtype=torch.float64)
    stored = levels["conv.weight_int8"]
    assert stored.dtype == torch.int8
    assert stored.abs().amax() <= 127
    error = (stored.double() * scale.reshape(-1, 1, 1, 1) - weight).abs()
    assert (error <= scale.reshape(-1, 1, 1, 1) / 2 * (1 + 1e-5)).all()
    assert stored.abs().flatten(1).amax(1).min() >= 126  # Each channel uses its whole range.


def test_one_linear_equals_the_equation(table, graph):
    others = {name for name in table.sites if not name.startswith("head")}
    placed = place(graph, table.without(others), RULES["onnxruntime"])
    seen = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n):
            seen[n.name] = super().run_node(n)
            return seen[n.name]

    out = Watch(placed.exported.module(check_guards=False)).run(torch.from_numpy(IMAGES[:1]))
    x = next(seen[n.name] for n in calls(placed, "aten.mean.dim")).double()
    s = table.sites["head.input"].scale[0]
    x = torch.clamp(torch.round(x / s), -128, 127) * s
    weight = graph.exported.state_dict["head.weight"].double()
    sw = torch.tensor(table.sites["head.weight"].scale, dtype=torch.float64)[:, None]
    w = torch.clamp(torch.round(weight / sw), -127, 127) * sw
    assert torch.allclose((x @ w.T).float(), out[0] if isinstance(out, tuple) else out, atol=1e-6)


def test_what_each_runtime_keeps_in_float(graph, table):
    on_cpu = place(graph, table, RULES["onnxruntime"])
    assert kept_float(on_cpu) == ("conv",)
    assert count_quantized(on_cpu) == 4
    on_phone = place(graph, table, RULES["coreml"])
    assert kept_float(on_phone) == ()
    assert count_quantized(on_phone) == 5
    assert kept_float(graph) == ("conv", "q", "k", "v", "head")


def test_only_rules_with_matmul_write_products(graph, table):
    as_product = place(graph, table, RULES["tensorrt"])
    assert not calls(as_product, "aten.linear.default")
    assert len(calls(place(graph, table, RULES["coreml"]), "aten.linear.default")) == 4


def test_a_dynamic_batch_stays_dynamic(table):
    torch.manual_seed(0)
    model = Model(Net(), (Input("x", (1, 3, 8, 8)),), ("y",), "net").with_batch("dynamic")
    placed = place(model.export(), table, RULES["onnxruntime"])
    assert placed.run({"x": IMAGES[:5]})["y"].shape == (5, 5)

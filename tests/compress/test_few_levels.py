"""few_levels: weights of two or three levels a channel, that INT8 holds exactly."""

from __future__ import annotations

import itertools
import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgekit import families, targets
from edgekit.compress import Context, apply, parse, structure
from edgekit.compress.distill import Distill
from edgekit.compress.few_levels import FewLevels
from edgekit.data import open_data
from edgekit.edit import Editor
from edgekit.errors import EdgekitError
from edgekit.families import Options
from edgekit.model import Input, Model
from edgekit.operators.few_levels import LEVELS, few_levels, is_few_levels
from edgekit.quantize.rounding import find_weights
from edgekit.quantize.training import finish, trainable
from edgekit.quantize.weights import levels, rounded
from edgekit.recipe import Recipe
from edgekit.work import Work


@pytest.fixture(scope="module")
def model(digits_model):
    return families.load(f"timm/{digits_model}", Options())


@pytest.fixture(scope="module")
def made(model):
    """By levels."""
    return {levels: apply(FewLevels(levels), model, Context()) for levels in LEVELS}


def few(module):
    """The layers that have few levels, by path."""
    return {path: each for path, each in module.named_modules() if hasattr(each, "leveled")}


@pytest.mark.parametrize("levels", LEVELS)
def test_the_levels_are_the_least_squares(levels):
    """Of all ways to give 7 weights levels, with the best scale for each."""
    torch.manual_seed(0)
    weight = torch.randn(5, 7).double()
    signs = (-1.0, 1.0) if levels == "binary" else (-1.0, 0.0, 1.0)
    ways = torch.tensor(list(itertools.product(signs, repeat=7))).double()
    ways = ways[ways.any(1)]
    explained = (weight @ ways.T).square() / ways.square().sum(1)
    best = (weight.square().sum(1) - explained.amax(1)).sum()
    found = float((few_levels(weight, levels) - weight).square().sum())
    assert found == pytest.approx(float(best), rel=1e-4)  # the scale is rounded to a float16


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("shape", [(6, 20), (6, 3, 5, 5)])
def test_a_scale_is_127_times_a_float16(levels, shape):
    torch.manual_seed(0)
    made = few_levels(torch.randn(shape), levels)
    assert is_few_levels(made)
    peak = made.flatten(1).abs().amax(1)
    assert torch.equal((peak / 127).half().float() * 127, peak)
    assert (made == 0).any() == (levels == "ternary")


def test_rows_of_zeros_and_what_has_no_few_levels():
    weight = torch.randn(3, 8)
    weight[1] = 0
    made = few_levels(weight, "ternary")
    assert is_few_levels(made)
    assert not made[1].any()
    assert not is_few_levels(weight)
    assert not is_few_levels(torch.zeros(3, 8))
    assert not is_few_levels(torch.ones(8))
    assert not is_few_levels(torch.randn(3, 1, 1))  # one weight a row has one level at any time


@pytest.mark.parametrize("levels", LEVELS)
def test_it_is_an_operator_whose_gradient_passes_straight(levels):
    weight = torch.randn(4, 6, requires_grad=True)
    wanted = torch.randn(4, 6)
    (few_levels(weight, levels) * wanted).sum().backward()
    assert torch.equal(weight.grad, wanted)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    operator = torch.ops.edgekit.few_levels.default
    torch.library.opcheck(operator, (weight, levels), test_utils=tests)


def test_embeddings_and_heads_stay_and_the_rest_does_not(made):
    layers = {
        path
        for path, each in made["ternary"].module.named_modules()
        if isinstance(each, nn.Linear | nn.Conv2d)
    }
    assert layers - few(made["ternary"].module).keys() == {"patch_embed.proj", "head"}


def test_exclude(model):
    step = parse("few_levels:levels=binary,exclude=[blocks.0,*.qkv]")
    found = apply(step, model, Context()).module
    assert few(found).keys() == {f"blocks.1.{n}" for n in ("attn.proj", "mlp.fc1", "mlp.fc2")}


@pytest.mark.parametrize(
    ("step", "message"),
    [("exclude=[blck*]", "matches no layer"), ("exclude=[blocks]", "no layer to give ternary")],
)
def test_what_cannot_be_done_is_said(step, message, model):
    with pytest.raises(EdgekitError, match=message):
        apply(parse(f"few_levels:{step}"), model, Context())


def test_what_has_few_levels_already_is_left(made):
    with pytest.raises(EdgekitError, match="no layer to give") as caught:
        apply(FewLevels(), made["binary"], Context())
    assert "own kind" in caught.value.why


class Net(nn.Module):
    """Every kind of layer; outliers enter ``up``."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, (1, 3), stride=(2, 1), groups=2, padding_mode="reflect")
        self.along = nn.Conv1d(8, 16, 3, dilation=2, padding=2)
        self.last = nn.LayerNorm(16)
        self.up = nn.Linear(16, 24)
        self.down = nn.Linear(24, 16)
        self.head = nn.Linear(16, 4)
        with torch.no_grad():
            self.last.weight[0] = 50.0

    def forward(self, x):
        x = self.along(self.grouped(torch.relu(self.norm(self.first(x)))).flatten(2))
        return self.head(self.down(torch.relu(self.up(self.last(x.transpose(1, 2))))))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    module = Net()
    module(torch.randn(16, 3, 8, 8))  # gives the batch norm statistics
    return Model(module.eval(), (Input("x", (1, 3, 8, 8)),), ("y",), "mine")


@pytest.mark.parametrize("levels", LEVELS)
def test_it_is_saved_and_loaded(levels, net):
    made = apply(FewLevels(levels), net, Context()).module
    assert few(made).keys() == {"first", "grouped", "along", "up", "down"}
    described = json.loads(json.dumps(structure.describe(net.module, made)))
    again = structure.restore(Net(), described)
    structure.load(again, structure.tensors(made), "here")
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), made(x))
        assert not torch.equal(made(x), net.module(x))


def test_the_export_holds_the_levels_alone(made):
    graph = made["binary"].export()
    assert not [n for n in Editor(graph).calls() if "edgekit" in str(n.target)]
    state = graph.exported.state_dict
    for path, layer in few(made["binary"].module).items():
        assert torch.equal(state[f"{path}.weight.few_levels"], layer.leveled())
        assert f"{path}.weight" not in state
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        expected = made["binary"].module(x).numpy()
    np.testing.assert_array_equal(next(iter(graph.run({"x": x.numpy()}).values())), expected)


def test_distillation_trains_what_is_behind_the_levels(model, made, digits_folder):
    data = open_data(digits_folder, model.inputs, model.preprocess).take(16, 0)
    before = made["ternary"].module.blocks[0].mlp.fc1
    step = Distill(steps=3, rate=0.01, batch_size=8)
    after = apply(step, made["ternary"], Context(data=data, teacher=model)).module
    layer = after.blocks[0].mlp.fc1
    assert not torch.equal(layer.weight, before.weight)
    assert not torch.equal(layer.leveled(), before.leveled())
    assert is_few_levels(layer.leveled())


@pytest.fixture(scope="module")
def work(net):
    """The net of three levels, to be converted in any way."""
    made = apply(FewLevels(), net, Context())
    samples = list(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)).numpy())

    def of(**asked):
        found = Work(Recipe.check({"model": "mine", **asked}, "test"), samples)
        found.original = made
        return found

    return of


@pytest.mark.parametrize("effort", ["quick", "balanced", "best"])
def test_int8_holds_the_levels_bit_for_bit(effort, work):
    asked = work(precision="int8", effort=effort)
    found = asked.quantize()
    held = {
        weight.site.module: (weight.value, found.table.sites[weight.site.name])
        for weight in find_weights(Editor(found.applied(asked.graph)), found.table)
    }
    layers = few(asked.model.module)
    assert layers.keys() < held.keys()
    for path, layer in layers.items():
        value, entry = held[path]
        assert set(levels(value, entry).unique().tolist()) <= {-127, 0, 127}
        if path != "first":  # whose scales the batch norm has multiplied
            assert torch.equal(rounded(value, entry), layer.leveled())


def test_so_does_the_onnx_file(work, tmp_path):
    asked = work(precision="int8", effort="balanced")
    made = asked.artifact(targets.load("cpu"), "onnx", tmp_path, asked.quantize())
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(made).graph.initializer}
    stored = {n: v for n, v in held.items() if n.endswith("_int8") and "few_levels" in n}
    assert {name.partition(".")[0] for name in stored} == {"up", "down"}
    assert all(set(np.unique(each)) <= {-127, 0, 127} for each in stored.values())


def test_quantization_aware_training_leaves_the_levels(work):
    asked = work(precision="int8", effort="quick")
    graph, found = asked.graph, asked.quantize()
    module = trainable(graph, found)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        module(torch.randn(1, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    after = finish(module, graph, found)
    state = after.applied(graph).exported.state_dict
    for path, layer in few(asked.model.module).items():
        assert after.table.sites[f"{path}.weight"] == found.table.sites[f"{path}.weight"]
        if path != "first":
            assert torch.equal(state[f"{path}.weight.few_levels"], layer.leveled())
    assert not torch.equal(state["head.weight"], graph.exported.state_dict["head.weight"])

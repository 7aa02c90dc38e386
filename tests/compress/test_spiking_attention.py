"""Attention of spikes: what it computes, how it is fitted, told, saved, and exported."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import data, targets
from edgekit.compress import Context, apply, structure
from edgekit.compress.measure import relative_error
from edgekit.compress.modules.qcfs import QCFS
from edgekit.compress.modules.spiking_attention import SpikingAttention
from edgekit.compress.spiking import Spiking
from edgekit.errors import EdgekitError
from edgekit.find import find
from edgekit.model import Input, Model
from edgekit.quantize.spiking.report import count
from edgekit.targets.rules import rules_for
from edgekit.work import export

STEPS = 8
SHAPE = (4, 9, 16)


class Attention(nn.Module):
    """As timm's, of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = 2, 8, 8**-0.5
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.q_norm, self.k_norm = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x, attn_mask=None, is_causal=False):
        parts = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        y = nn.functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(y.transpose(1, 2).flatten(2))


class Masked(Attention):
    """It adds to the scores what is no part of it."""

    def forward(self, x, attn_mask=None, is_causal=False):
        return super().forward(x) + x.mean(1, keepdim=True)


class Net(nn.Module):
    def __init__(self, second: type[Attention]) -> None:
        super().__init__()
        self.first, self.second = Attention(), second()
        self.mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    def forward(self, x):
        x = x + self.first(x)
        x = x + self.mlp(x)
        return x + self.second(x, attn_mask=None)


def made(second=Attention):
    torch.manual_seed(0)
    return Model(Net(second).eval(), (Input("x", SHAPE),), ("y",), "net")


def samples():
    return np.random.default_rng(0).standard_normal((32, *SHAPE[1:])).astype("float32")


@pytest.fixture(scope="module")
def model():
    return made()


@pytest.fixture(scope="module")
def context(model):
    return Context(data.open_data({"x": samples()}, model.inputs, None))


def converted(model, context, **options):
    return apply(Spiking(STEPS, spiking_attention=True, batch_size=32, **options), model, context)


@pytest.fixture(scope="module")
def spiking(model, context):
    return converted(model, context)


@pytest.fixture(scope="module")
def graph(spiking):
    return export(spiking)


def test_it_is_a_product_of_spikes(spiking):
    """By hand, from counts of spikes, and in the other order."""
    attention = spiking.module.first
    x = torch.from_numpy(samples()[:3])
    parts = attention.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    q, k, v = parts.unbind(0)
    q = attention.query_unit(attention.q_norm(q) - attention.query_mean)
    k = attention.key_unit(attention.k_norm(k) - attention.key_mean)
    v = attention.value_unit(v)
    for value, unit in ((q, attention.query_unit), (k, attention.key_unit)):
        levels = value / unit.scale
        assert torch.equal(levels, levels.round())
        assert levels.min() == 0
        assert 1 <= levels.max() <= STEPS
    scores = q @ k.transpose(-2, -1)
    assert scores.min() >= 0
    heads = scores @ v * attention.factor / x.shape[1]
    wanted = attention.proj(attention.output_unit(heads.transpose(1, 2).flatten(2)))
    torch.testing.assert_close(attention(x), wanted, atol=1e-5, rtol=0)
    assert attention.keys_first  # nine tokens, eight channels a head


def test_no_softmax_is_left(spiking, graph):
    operators = {str(node.target) for node in graph.exported.graph.nodes}
    assert not [name for name in operators if "softmax" in name or "scaled_dot" in name]
    kinds = [type(module) for module in spiking.module.modules()]
    assert kinds.count(SpikingAttention) == 2
    assert kinds.count(QCFS) == 2 * 4 + 1


def test_it_is_near_what_it_stands_for(model, context, spiking):
    refitted = relative_error(model, spiking, context.data)
    unfitted = relative_error(model, converted(model, context, refit=False), context.data)
    assert refitted < unfitted
    assert refitted < 0.1


def test_queries_and_keys_lose_their_means(spiking):
    attention, seen = spiking.module.first, []
    hook = attention.query_unit.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    spiking.module(torch.from_numpy(samples()))
    hook.remove()
    assert seen[0].mean((0, 2)).abs().max() < 1e-5


def test_what_it_costs_is_said(model, context, monkeypatch):
    told = []
    monkeypatch.setattr("edgekit.progress.say", told.append)
    converted(model, context)
    (line,) = [text for text in told if "attentions are of spikes" in text]
    assert line.startswith("2 attentions")
    assert "squared error" in line


def test_temporal_is_equal(spiking, model, context):
    temporal = converted(model, context, form="temporal")
    x = torch.from_numpy(samples())
    assert torch.equal(spiking.module(x), temporal.module(x))


def test_it_is_saved_and_made_again(spiking, model):
    described = structure.describe(model.module, spiking.module)
    again = structure.restore(made().module, described)
    structure.load(again, structure.tensors(spiking.module), "saved")
    x = torch.from_numpy(samples())
    assert torch.equal(again.eval()(x), spiking.module(x))


def test_proj_and_both_products_feed_on_spikes(graph):
    layers = count(graph, [{"x": samples()[:4]}], "net").layers
    fed = {layer.name: layer.unit for layer in layers}
    assert fed["first.proj"] == "first.output_unit"
    assert fed["first.qkv"] == ""
    products = [layer for layer in layers if layer.kind == "product"]
    assert len(products) == 4
    assert all(layer.unit for layer in products)


def test_onnx_is_equal(spiking, graph, tmp_path):
    from edgekit.targets.runtimes import onnxruntime

    device = targets.load("cpu")
    for name in rules_for(device).rewrites:
        graph = find("rewrites", name).rewrite(graph)
    find("converters", "onnx").convert(graph, tmp_path / "model.onnx", device)
    call = {"x": samples()[:4]}
    with onnxruntime.open(tmp_path / "model.onnx", 1) as session:
        given = session.infer(call)["y"]
    with torch.no_grad():
        wanted = spiking.module(torch.from_numpy(call["x"])).numpy()
    assert np.abs(given - wanted).max() < 1e-4


def test_attention_of_another_form_is_left(context, monkeypatch):
    told = []
    monkeypatch.setattr("edgekit.compress.layers.say", told.append)
    mixed = converted(made(Masked), context)
    assert isinstance(mixed.module.first, SpikingAttention)
    assert isinstance(mixed.module.second, Masked)
    assert any("second" in text and "more than softmax attention" in text for text in told)


def test_exclude_names_attentions_too(model, context):
    mixed = converted(model, context, exclude=("sec*",))
    assert isinstance(mixed.module.first, SpikingAttention)
    assert isinstance(mixed.module.second, Attention)


def test_none_of_that_form_is_an_error(context):
    plain = made()
    for name in ("first", "second"):
        setattr(plain.module, name, nn.Identity())
    plain = dataclasses.replace(plain, module=nn.Sequential(plain.module.mlp))
    plain = dataclasses.replace(plain, inputs=(Input("input", SHAPE),))
    with pytest.raises(EdgekitError, match="no attention that can be one of spikes"):
        apply(Spiking(spiking_attention=True), plain, context)

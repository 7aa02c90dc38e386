"""Quantization-aware training: LSQ's gradients, and that what is trained is what ships."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from edgekit.converters.rewrites import batch_norm
from edgekit.data import open_data
from edgekit.errors import EdgekitError
from edgekit.model import BATCH, Input, Model
from edgekit.quantize.effort import plan_for
from edgekit.quantize.fake_quantizer import LEAST, FakeQuantizer
from edgekit.quantize.place import place
from edgekit.quantize.post_training import Quantized, quantize
from edgekit.quantize.scales import Entry
from edgekit.quantize.schemes import SCHEMES, scheme_for
from edgekit.quantize.training import finish, groups, trainable
from edgekit.targets.rules import RULES

RANDOM = np.random.default_rng(0)
#: Images vary in far fewer ways than they have pixels: white noise can only be learned by heart.
WAYS = RANDOM.standard_normal((8, 3 * 8 * 8)) / np.sqrt(8)


def images(count):
    return (RANDOM.standard_normal((count, 8)) @ WAYS).reshape(count, 3, 8, 8).astype(np.float32)


IMAGES, NEW = images(256), images(256)
#: As Core ML's, which changes nothing else, but for attention.
WITH_ATTENTION = dataclasses.replace(
    RULES["coreml"], operators=frozenset({"linear", "conv", "attention"})
)


class Net(torch.nn.Module):
    """A convolution with a norm, attention over heads of 6 channels, and a head."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 12, 4, stride=4)
        self.bn = torch.nn.BatchNorm2d(12)
        self.q, self.k, self.v = (torch.nn.Linear(12, 12) for _ in range(3))
        self.norm = torch.nn.LayerNorm(12)
        self.head = torch.nn.Linear(12, 5)

    def forward(self, x):
        x = self.bn(self.conv(x)).flatten(2).transpose(1, 2)
        q, k, v = (f(x).unflatten(2, (2, 6)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(self.norm(x + mixed.transpose(1, 2).flatten(2)).mean(1))


class Perceptron(torch.nn.Module):
    """Three linears."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(192, 48), torch.nn.Linear(48, 48)
        self.head = torch.nn.Linear(48, 5)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x.flatten(1))))))


class Tied(torch.nn.Module):
    """A head that reads the table of the embedding, and a linear that is called twice."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(11, 8)
        self.twice = torch.nn.Linear(8, 8)

    def forward(self, x):
        x = self.twice(torch.relu(self.twice(self.table(x))))
        return torch.nn.functional.linear(x, self.table.weight)


def exported(module, shape=(BATCH, 3, 8, 8), dtype="float32"):
    torch.manual_seed(0)
    return Model(module().eval(), (Input("x", shape, dtype),), ("y",), "net").export()


@pytest.fixture(scope="module")
def graph():
    return batch_norm.rewrite(exported(Net))


def quick(graph, scheme):
    data = open_data(IMAGES, graph.inputs, None)
    return quantize(graph, data, plan_for(scheme, "quick", None), batch_size=8)


@pytest.fixture(scope="module")
def w4a8(graph):
    return quick(graph, SCHEMES["w4a8"])


def evaluated(module):
    with torch.no_grad():
        return module(torch.from_numpy(IMAGES)).numpy()


def placed(graph, made, rules=RULES["coreml"], x=IMAGES):
    return place(made.applied(graph), made.table, rules).run({"x": x})["y"]


def train(module, wanted, updates, rate=5e-4, step_rate=5e-3):
    """Distil, with rates that fall to zero; returns the error of all images before and after."""
    x, wanted = torch.from_numpy(IMAGES), torch.from_numpy(wanted)
    optimizer = torch.optim.Adam(groups(module.train(), rate, step_rate))
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, updates)
    errors = []
    for _ in range(updates + 1):
        loss = (module(x) - wanted).square().mean()
        errors.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    return errors[0], errors[-1]


def entry(scale, kind="input", dtype="int8"):
    return Entry(kind=kind, operator="linear", dtype=dtype, scale=scale)


def test_gradients_of_an_activation_are_equation_3():
    quantizer = FakeQuantizer(entry((0.5,)))
    # Two samples of three features. In steps: 0.4, 2.6, 200 (above), -0.8, -128 (at the end), 7.
    x = torch.tensor([[0.2, 1.3, 100.0], [-0.4, -64.0, 3.5]], requires_grad=True)
    out = quantizer(x)
    assert out.tolist() == [[0.0, 1.5, 63.5], [-0.5, -64.0, 3.5]]
    (out * torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).sum().backward()
    assert x.grad.tolist() == [[1, 2, 0], [4, 0, 6]]
    by_hand = 1 * (0 - 0.4) + 2 * (3 - 2.6) + 3 * 127 + 4 * (-1 + 0.8) + 5 * -128 + 6 * (7 - 7)
    assert quantizer.step.grad.item() == pytest.approx(by_hand / math.sqrt(3 * 127), rel=1e-5)


def test_gradients_of_a_weight_are_by_channel():
    quantizer = FakeQuantizer(entry((0.5, 0.25), "weight", "int4"))
    weight = torch.tensor([[0.6, -5.0], [0.3, 0.4]], requires_grad=True)
    out = quantizer(weight)
    assert out.tolist() == [[0.5, -3.5], [0.25, 0.5]]
    out.sum().backward()
    assert weight.grad.tolist() == [[1, 0], [1, 1]]
    by_hand = [(1 - 1.2) - 7, (1 - 1.2) + (2 - 1.6)]
    expected = [each / math.sqrt(2 * 7) for each in by_hand]
    assert quantizer.step.grad.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_step_stays_a_positive_float16():
    quantizer = FakeQuantizer(entry((0.5,)))
    with torch.no_grad():
        quantizer.step.fill_(-1.0)
    assert quantizer.entry.scale == (LEAST,)
    quantizer(torch.ones(1, 1)).sum().backward()
    assert quantizer.step.grad.item() > 0  # It can still be learned.


@pytest.mark.parametrize("precision", SCHEMES)
def test_starts_as_the_placed_graph_bit_for_bit(graph, precision):
    made = quick(graph, SCHEMES[precision])
    module = trainable(graph, made)
    wanted = placed(graph, made)
    assert np.array_equal(evaluated(module.eval()), wanted)
    assert np.array_equal(evaluated(module.train()), wanted)
    assert not np.array_equal(wanted, graph.run({"x": IMAGES})["y"])


def test_training_lowers_the_error_on_new_images_too():
    graph = exported(Perceptron)
    made = quick(graph, SCHEMES["w4a8"])
    wanted = graph.run({"x": NEW})["y"]
    module = trainable(graph, made)
    first, last = train(module, graph.run({"x": IMAGES})["y"], updates=60)
    assert last < first / 4
    done = finish(module, graph, made)
    before, after = (np.square(placed(graph, m, x=NEW) - wanted).mean() for m in (made, done))
    assert after < before / 2


@pytest.mark.parametrize("attention", [False, True])
def test_what_is_trained_is_what_ships(graph, w4a8, attention):
    rules = WITH_ATTENTION if attention else RULES["coreml"]
    module = trainable(graph, w4a8, attention)
    assert np.array_equal(evaluated(module), placed(graph, w4a8, rules))
    train(module, graph.run({"x": IMAGES})["y"], updates=5)
    done = finish(module, graph, w4a8)
    assert np.array_equal(evaluated(module), placed(graph, done, rules))
    assert not np.array_equal(placed(graph, done, rules), placed(graph, w4a8, rules))
    learned = {name for name, entry in done.table.sites.items() if entry != w4a8.table.sites[name]}
    assert any(name.endswith("probabilities") for name in learned) == attention
    assert {"conv.input", "conv.weight", "head.input", "head.weight"} <= learned
    assert done.table.method == "lsq"
    assert done.tensors["head.weight"].dtype == torch.int8
    assert done.tensors["head.weight"].abs().amax() <= 7


def test_all_that_is_float_learns_and_the_graph_does_not_change(graph, w4a8):
    original = {name: value.clone() for name, value in graph.exported.state_dict.items()}
    module = trainable(graph, w4a8)
    first = {name: value.detach().clone() for name, value in module.named_parameters()}
    train(module, graph.run({"x": IMAGES})["y"], updates=2)
    still = [name for name, value in module.named_parameters() if torch.equal(first[name], value)]
    assert still == []
    assert {"q.weight_quantizer.step", "norm.weight", "head.bias"} <= set(first)
    assert any(name.startswith("conv.weight_folded") for name in first)
    for name, value in graph.exported.state_dict.items():
        assert torch.equal(original[name], value)


def test_sites_of_one_tensor_keep_one_scale(graph, w4a8):
    module = trainable(graph, w4a8)
    train(module, graph.run({"x": IMAGES})["y"], updates=2)
    sites = finish(module, graph, w4a8).table.sites
    assert sites["q.input"].scale == sites["k.input"].scale == sites["v.input"].scale
    assert sites["q.input"].scale != w4a8.table.sites["q.input"].scale
    assert len(set(sites["q.weight"].scale)) > 1


def test_one_scale_a_weight_stays_one(graph):
    made = quick(graph, scheme_for("w4a8", "tensor"))
    module = trainable(graph, made)
    train(module, graph.run({"x": IMAGES})["y"], updates=2)
    scale = finish(module, graph, made).table.sites["head.weight"].scale
    assert len(scale) == 5
    assert set(scale) != set(made.table.sites["head.weight"].scale)
    assert len(set(scale)) == 1


def test_scales_of_8_bit_floats_stay(graph):
    made = quick(graph, SCHEMES["fp8"])
    module = trainable(graph, made)
    train(module, graph.run({"x": IMAGES})["y"], updates=3)
    done = finish(module, graph, made)
    assert done.table.sites == made.table.sites
    assert np.array_equal(evaluated(module), placed(graph, done))
    assert not np.array_equal(placed(graph, done), placed(graph, made))


def test_tied_weights_stay_tied():
    graph = exported(Tied, (BATCH, 6), "int64")
    tokens = np.random.default_rng(0).integers(0, 11, (32, 6))
    data = open_data(tokens, graph.inputs, None)
    made = quantize(graph, data, plan_for(SCHEMES["w4a8"], "quick", None), batch_size=8)
    module = trainable(graph, made)
    x, wanted = torch.from_numpy(tokens), torch.from_numpy(graph.run({"x": tokens})["y"])
    optimizer = torch.optim.Adam(groups(module, 1e-3))
    for _ in range(3):
        optimizer.zero_grad()
        (module(x) - wanted).square().mean().backward()
        optimizer.step()
    done = finish(module, graph, made)
    with torch.no_grad():
        trained = module(x).numpy()
    shipped = place(done.applied(graph), done.table, RULES["coreml"]).run({"x": tokens})["y"]
    assert np.array_equal(trained, shipped)
    assert done.table.sites["twice.weight"] == done.table.sites["twice#2.weight"]


def test_divided_inputs_stay_divided(graph, w4a8, tmp_path):
    factors = torch.linspace(0.5, 2, 12)
    weight = graph.exported.state_dict["head.weight"].detach() * factors
    tensors = {"head.weight": weight, "head.input:factors": factors}
    made = dataclasses.replace(w4a8, tensors=tensors)
    module = trainable(graph, made)
    assert np.array_equal(evaluated(module), placed(graph, made))
    train(module, graph.run({"x": IMAGES})["y"], updates=2)
    finish(module, graph, made).save(tmp_path / "scales.json")
    done = Quantized.load(tmp_path / "scales.json")
    assert torch.equal(done.tensors["head.input:factors"], factors)
    assert np.array_equal(evaluated(module), placed(graph, done))


def test_steps_have_rates_of_their_own_size(graph, w4a8):
    module = trainable(graph, w4a8)
    weights, *steps = groups(module, 1e-3, 0.01)
    names = {id(value): name for name, value in module.named_parameters()}
    assert weights["lr"] == 1e-3
    assert not any("quantizer" in names[id(value)] for value in weights["params"])
    by_name = {names[id(group["params"][0])]: group for group in steps}
    scale = w4a8.table.sites["head.input"].scale[0]
    assert by_name["head.input_quantizer.step"]["lr"] == pytest.approx(0.01 * scale)
    assert len(weights["params"]) + len(steps) == len(names)


def test_a_diverged_training_is_refused(graph, w4a8):
    module = trainable(graph, w4a8)
    with torch.no_grad():
        module.get_parameter("head.bias")[0] = torch.nan
    with pytest.raises(EdgekitError, match=r"diverged: head\.bias is not finite"):
        finish(module, graph, w4a8)


def test_scales_of_another_model_are_refused(w4a8):
    with pytest.raises(EdgekitError, match="belongs to another model"):
        trainable(exported(Tied, (BATCH, 6), "int64"), w4a8)

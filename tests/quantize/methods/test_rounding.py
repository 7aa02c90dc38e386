"""Methods that round weights and correct biases: what they promise, by hand and on real layers."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from edgekit.data import open_data
from edgekit.edit import Editor
from edgekit.model import BATCH, Input, Model
from edgekit.quantize.calibrate import observe
from edgekit.quantize.methods.adaround import AdaRound
from edgekit.quantize.methods.bias import BiasCorrection
from edgekit.quantize.methods.gptq import Gptq
from edgekit.quantize.ranges.minmax import Range
from edgekit.quantize.rounding import Layer
from edgekit.quantize.scales import Entry, ScaleTable
from edgekit.quantize.schemes import QMAX, Scheme
from edgekit.quantize.sites import find_sites
from edgekit.quantize.weights import levels, rounded, scale_of, spread, weight_entry

METHODS = [Gptq(), Gptq(by_size=False, block=3), AdaRound(), AdaRound(block=5)]
SCHEMES = [
    Scheme("int8", "int8"),
    Scheme("int4", "int8"),
    Scheme("int4", None, "group32"),
    Scheme("fp8", "fp8"),
]
#: Pixels that move together, as real ones do: where they do, rounding has something to win.
IMAGES = (
    np.random.default_rng(0).standard_normal((24, 4, 2, 8, 8)).cumsum(-1).cumsum(-2).sum(1) + 3
).astype(np.float32)


class Net(torch.nn.Module):
    """A convolution with padding, a depthwise one, linears with and without a bias."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 8, 3, padding=1)
        self.depthwise = torch.nn.Conv2d(8, 8, 2, stride=2, groups=8)
        self.wide = torch.nn.Linear(8, 64)
        self.back = torch.nn.Linear(64, 8, bias=False)
        self.head = torch.nn.Linear(8, 5)
        self.again = torch.nn.Linear(5, 5)

    def forward(self, x):
        x = self.depthwise(self.conv(x)).flatten(2).transpose(1, 2)
        x = self.back(torch.nn.functional.gelu(self.wide(x)))
        return self.again(self.again(self.head(x)))


def calibrated(module, samples, scheme, products=True):
    """Its graph, the scales of its weights, and what was seen."""
    name = next(iter(inspect.signature(module.forward).parameters))
    spec = Input(name, (BATCH, *samples.shape[1:]))
    graph = Model(module, (spec,), ("y",), "net").export()
    editor = Editor(graph)
    sites = find_sites(editor)
    seen = observe(graph, sites, open_data(samples, graph.inputs, None), Range(), products)
    calls = {node.name: node for node in editor.calls()}
    entries = {
        site.name: weight_entry(editor.tensor(calls[site.node].args[1]), site.operator, scheme)
        if site.kind == "weight"
        else Entry(
            kind="input",
            operator=site.operator,
            dtype=scheme.activation,
            scale=(max(seen.by_site[site.name].peak, 1e-6) / QMAX[scheme.activation],),
        )
        for site in sites
        if site.kind == "weight" or scheme.activation
    }
    table = ScaleTable(method="", effort="", data="", samples=len(samples), sites=entries)
    return graph, table, seen


def named(scheme):
    return f"{scheme.weight}-{scheme.granularity}"


@pytest.fixture(scope="module", params=SCHEMES, ids=named)
def case(request):
    torch.manual_seed(0)
    return calibrated(Net(), IMAGES, request.param)


def state(graph):
    return graph.exported.state_dict


def loss(weight, value, statistics):
    """What rounding leaves of the covariance (the bias takes up the mean) of all inputs."""
    error = (value - weight).detach().double().flatten(1)
    mean = torch.from_numpy(statistics.gram_sum) / statistics.gram_rows
    gram = torch.from_numpy(statistics.gram).double() / statistics.gram_rows - mean.outer(mean)
    return float(((error @ gram) * error).sum())


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_outputs_are_nearer_than_with_nearest_levels(case, method):
    graph, table, seen = case
    after = state(method.round(graph, table, seen))
    for layer in ("conv", "wide", "head"):
        weight, entry = state(graph)[f"{layer}.weight"], table.sites[f"{layer}.weight"]
        statistics = seen.by_site[f"{layer}.input"]
        least = loss(weight, rounded(weight, entry), statistics)
        assert loss(weight, after[f"{layer}.weight"], statistics) < least


@pytest.mark.parametrize("method", METHODS[::2], ids=repr)
def test_weights_are_scale_times_level_and_stay_so(case, method):
    graph, table, seen = case
    after = state(method.round(graph, table, seen))
    for name in ("conv", "wide", "back", "head"):
        weight, entry = after[f"{name}.weight"], table.sites[f"{name}.weight"]
        assert torch.equal(rounded(weight, entry), weight)
        assert not torch.equal(weight, state(graph)[f"{name}.weight"])
        exact = weight.double() / spread(scale_of(entry), weight)
        assert torch.allclose(exact, levels(weight, entry).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scheme", SCHEMES, ids=named)
@pytest.mark.parametrize("method", METHODS[::2], ids=repr)
def test_the_levels_chosen_are_the_levels_stored(method, scheme):
    torch.manual_seed(0)
    weight, inputs = torch.randn(16, 64), torch.randn(200, 64) @ torch.randn(64, 64)
    entry = weight_entry(weight, "linear", scheme)
    gram = (inputs.T @ inputs).double()
    layer = Layer(weight.double(), spread(scale_of(entry), weight), gram, entry.dtype)
    chosen = method.levels(layer)
    stored = (chosen * layer.scale).float()
    assert torch.equal(levels(stored, entry).double(), chosen)
    assert chosen.abs().amax() <= QMAX[entry.dtype]


def test_two_levels_by_hand():
    """x2 = x1 in every row: what rounding w1 down by 0.4 loses, rounding w2 up gives back."""
    weight = torch.tensor([[1.4, 2.4]], dtype=torch.float64)
    gram = torch.tensor([[1.0, 0.99], [0.99, 1.0]], dtype=torch.float64)
    layer = Layer(weight, torch.ones_like(weight), gram, "int8")
    assert Gptq().levels(layer).tolist() == [[1.0, 3.0]]
    assert AdaRound().levels(layer).tolist() == [[1.0, 3.0]]


def test_levels_are_those_of_the_form_with_an_inverse():
    """Frantar et al., equations 2 and 3, one column after another."""
    torch.manual_seed(0)
    weight = torch.randn(6, 20, dtype=torch.float64) * 5
    inputs = torch.randn(50, 20, dtype=torch.float64)
    gram = inputs.T @ inputs
    left, expected = weight.clone(), torch.zeros_like(weight)
    for j in range(20):
        inverse = torch.linalg.inv(gram[j:, j:])
        expected[:, j] = left[:, j].round().clamp(-7, 7)
        error = (left[:, j] - expected[:, j]) / inverse[0, 0]
        left[:, j:] -= error[:, None] * inverse[0]
    layer = Layer(weight, torch.ones_like(weight), gram, "int4")
    assert torch.equal(Gptq(by_size=False, block=7).levels(layer), expected)


def test_no_single_level_can_be_bettered_after_adaround():
    torch.manual_seed(0)
    weight = torch.randn(4, 12, dtype=torch.float64) * 4
    inputs = torch.randn(30, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    layer = Layer(weight, torch.ones_like(weight), inputs.T @ inputs, "int4")
    chosen = AdaRound(sweeps=50, block=5).levels(layer)
    least = layer.losses(weight - chosen)
    assert (least <= layer.losses(weight - Gptq().levels(layer))).all()
    for j in range(12):
        for step in (-1, 1):
            moved = chosen.clone()
            moved[:, j] = (moved[:, j] + step).clamp(-7, 7)
            assert (layer.losses(weight - moved) >= least * (1 - 1e-9)).all()


@pytest.mark.parametrize("method", [*METHODS[::2], BiasCorrection()], ids=repr)
def test_the_mean_output_is_as_before(method):
    """Exact where a linear reads what it read before: here the model is one linear."""
    torch.manual_seed(0)
    samples = (IMAGES[:, 0] + np.arange(8)).astype(np.float32)
    graph, table, seen = calibrated(torch.nn.Linear(8, 16), samples, Scheme("int4", "int8"))
    rounding = state(method.round(graph, table, seen))
    (entry,) = (entry for name, entry in table.sites.items() if name.endswith("weight"))
    weight = rounded(rounding["weight"], entry)
    before = torch.nn.functional.linear(torch.from_numpy(samples), *state(graph).values())
    plain = torch.nn.functional.linear(torch.from_numpy(samples), weight, state(graph)["bias"])
    after = torch.nn.functional.linear(torch.from_numpy(samples), weight, rounding["bias"])
    off = (before - after).mean((0, 1)).abs().max()
    assert off < 1e-5
    assert (before - plain).mean((0, 1)).abs().max() > 100 * off


def test_bias_correction_leaves_weights_and_what_it_cannot_correct(case):
    graph, table, seen = case
    before, after = state(graph), state(BiasCorrection().round(graph, table, seen))
    assert all(after[name] is before[name] for name in before if name.endswith("weight"))
    changed = {name for name in before if after[name] is not before[name]}
    # One call more reads again.bias: what corrects one would spoil the other.
    assert changed == {"conv.bias", "depthwise.bias", "wide.bias", "head.bias"}


def test_bias_correction_has_nothing_to_add_to_rounded_weights(case):
    graph, table, seen = case
    once = Gptq().round(graph, table, seen)
    twice = BiasCorrection().round(once, table, seen)
    for name in ("conv.bias", "wide.bias", "head.bias"):
        assert torch.allclose(state(once)[name], state(twice)[name], atol=1e-6, rtol=0)


def test_what_cannot_be_rounded_is_left(case):
    graph, table, seen = case
    after = state(AdaRound().round(graph, table, seen))
    for name in ("depthwise.weight", "again.weight", "again.bias"):
        assert after[name] is state(graph)[name]


@pytest.mark.parametrize("method", METHODS[::2], ids=repr)
@pytest.mark.parametrize("spoil", ["dead inputs", "all dead", "one direction", "zero weight"])
def test_degenerate_layers(method, spoil):
    torch.manual_seed(0)
    samples = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    linear = torch.nn.Linear(8, 6)
    if spoil == "dead inputs":
        samples[:, ::2] = 0
    if spoil == "all dead":
        samples[:] = 0
        samples[0, 0] = 1e-30  # Equal samples would be refused.
    if spoil == "one direction":
        samples[:] = samples[:, :1] * 1000
    if spoil == "zero weight":
        linear.weight.data.zero_()
    graph, table, seen = calibrated(linear, samples, Scheme("int4", "int8"))
    after = state(method.round(graph, table, seen))
    (entry,) = (entry for name, entry in table.sites.items() if name.endswith("weight"))
    assert all(torch.isfinite(value).all() for value in after.values())
    assert torch.equal(rounded(after["weight"], entry), after["weight"])
    if spoil in ("all dead", "zero weight"):
        assert torch.equal(after["weight"], rounded(linear.weight, entry))


def test_products_of_many_rows_stay_those_of_some():
    """The number kept grows as the root of the number seen, and their mean product holds."""
    samples = np.random.default_rng(0).standard_normal((64, 512, 4)).astype(np.float32)
    samples[..., 1] += samples[..., 0]
    _, _, seen = calibrated(torch.nn.Linear(4, 3), samples, Scheme("int8", "int8"))
    (statistics,) = seen.by_site.values()
    assert statistics.rows == 64 * 512
    assert 2048 < statistics.gram_rows < 64 * 512 / 2
    mean = statistics.gram / statistics.gram_rows
    expected = np.einsum("nti,ntj->ij", samples, samples) / (64 * 512)
    assert np.allclose(mean, expected, atol=0.1)

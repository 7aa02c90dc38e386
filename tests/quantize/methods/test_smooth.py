"""smooth: the equation, that the function stays, and what is divided as the model runs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit.data import open_data
from edgekit.edit import Editor, quiet_copies
from edgekit.model import Input, Model
from edgekit.quantize.calibrate import Seen, observe
from edgekit.quantize.effort import plan_for
from edgekit.quantize.methods.equalize import Equalize
from edgekit.quantize.methods.smooth import Smooth
from edgekit.quantize.place import place
from edgekit.quantize.post_training import quantize
from edgekit.quantize.ranges.minmax import Range
from edgekit.quantize.schemes import SCHEMES, scheme_for
from edgekit.quantize.sites import find_sites
from edgekit.targets.rules import RULES

C, N = 32, 12
SAMPLES = np.random.default_rng(0).standard_normal((16, N, C)).astype(np.float32)
INT8 = plan_for(SCHEMES["int8"], "quick", None)


class Block(nn.Module):
    """A transformer's block; two channels of its norm and one of its values are outliers."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(C), nn.Linear(C, 3 * C), nn.Linear(C, C)
        with torch.no_grad():
            self.norm.weight[[3, 9]] *= 100
            self.qkv.weight[:, [3, 9]] /= 100
            self.qkv.weight[2 * C + 5] *= 100
            self.proj.weight[:, 5] /= 100

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return self.proj(F.scaled_dot_product_attention(q, k, v))


class Mixer(nn.Module):
    """A Mamba block with the scan as a running mean; what it gates has outliers."""

    def __init__(self):
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(C, 4 * C), nn.Linear(2 * C, C)
        self.conv = nn.Conv1d(2 * C, 2 * C, 3, padding=1, groups=2 * C)
        with torch.no_grad():
            self.conv.weight[[1, 40, 50]] *= 50
            self.out_proj.weight[:, [1, 40, 50]] /= 50

    def forward(self, x):
        x, gate = self.in_proj(x).chunk(2, -1)
        x = F.silu(self.conv(x.transpose(1, 2)).transpose(1, 2))
        return self.out_proj(self.rotated((x + x.cumsum(1) / N) * F.silu(gate)))

    def rotated(self, y):
        return y


class Hadamard(Mixer):
    """The same, with the outliers spread over all channels by an orthogonal matrix."""

    def __init__(self):
        super().__init__()
        matrix = torch.ones(1, 1)
        while len(matrix) < 2 * C:
            matrix = torch.kron(matrix, torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        self.register_buffer("matrix", matrix / len(matrix) ** 0.5)
        with torch.no_grad():
            self.out_proj.weight.copy_(self.out_proj.weight @ self.matrix)

    def rotated(self, y):
        return y @ self.matrix


def export(module, shape=(1, N, C)):
    torch.manual_seed(0)
    return Model(module().eval(), (Input("x", shape),), ("y",), "m").with_batch("dynamic").export()


def look(graph, samples=SAMPLES):
    data = open_data(samples, graph.inputs, None)
    return observe(graph, find_sites(Editor(graph)), data, Range(), batch_size=8)


def in_int8(graph, prepared=None):
    """Signal to noise, in dB, of a graph in INT8 against itself before it was prepared."""
    prepared = prepared or graph
    found = quantize(prepared, open_data(SAMPLES, graph.inputs, None), INT8, batch_size=8)
    exact = graph.run({"x": SAMPLES})["y"].astype(np.float64)
    error = place(prepared, found.table, RULES["coreml"]).run({"x": SAMPLES})["y"] - exact
    return 10 * np.log10((exact**2).sum() / (error**2).sum())


@pytest.fixture(scope="module")
def block():
    return export(Block)


@pytest.fixture(scope="module")
def mixer():
    return export(Mixer)


def test_the_function_stays_bit_for_bit_and_the_noise_falls(block):
    smooth, factors = Smooth().prepare(block, look(block))
    assert factors == {}
    assert np.array_equal(block.run({"x": SAMPLES})["y"], smooth.run({"x": SAMPLES})["y"])
    x = torch.from_numpy(SAMPLES).double()
    with quiet_copies():
        modules = [copy.deepcopy(g.exported.module(check_guards=False)) for g in (block, smooth)]
    before, after = (module.double()(x=x) for module in modules)
    assert (before - after).abs().max() < 1e-10
    assert in_int8(block, smooth) > in_int8(block) + 15


def test_factors_are_the_power_of_two_nearest_to_the_equation(block):
    seen = look(block)
    smooth, _ = Smooth(alpha=0.5).prepare(block, seen)
    old, new = block.exported.state_dict, smooth.exported.state_dict
    factors = (old["norm.weight"] / new["norm.weight"]).detach().double().numpy()
    peak = seen.by_site["qkv.input"].channel_peak.astype(np.float64)
    # The values' outlier has gone by then: layers are smoothed from the last to the first.
    weight = new["qkv.weight"].detach().abs().amax(0).double().numpy() / factors
    exact = np.log2(np.sqrt(peak / weight))
    exact = exact - np.sort(exact)[(C - 1) // 2]
    assert np.allclose(np.log2(factors), np.round(exact), atol=1e-6)


def test_outliers_that_no_constant_takes_are_divided(mixer):
    seen = look(mixer)
    smooth, factors = Smooth().prepare(mixer, seen)
    assert list(factors) == ["out_proj.input"]
    assert factors["out_proj.input"].topk(3).indices.sort().values.tolist() == [1, 40, 50]
    assert np.array_equal(mixer.run({"x": SAMPLES})["y"], smooth.run({"x": SAMPLES})["y"])
    assert Smooth(divide=False).prepare(mixer, seen)[1] == {}
    assert Smooth(gain=1e9).prepare(mixer, seen)[1] == {}


def test_dividing_does_as_well_as_a_rotation(mixer):
    divided, _ = Smooth().prepare(mixer, look(mixer))
    rotated = export(Hadamard)
    assert np.allclose(mixer.run({"x": SAMPLES})["y"], rotated.run({"x": SAMPLES})["y"], atol=1e-4)
    plain, with_rotation, with_division = in_int8(mixer), in_int8(rotated), in_int8(mixer, divided)
    assert with_division > plain + 6
    assert with_division > with_rotation


def test_sites_that_were_left_out_are_not_looked_at(block):
    kept = {k: v for k, v in look(block).by_site.items() if not k.startswith("qkv")}
    smooth, _ = Smooth().prepare(block, Seen(kept, 1))
    old, new = block.exported.state_dict, smooth.exported.state_dict
    assert new["norm.weight"] is old["norm.weight"]
    assert new["proj.weight"] is not old["proj.weight"]


def test_one_scale_a_weight_keeps_the_rows_of_layers(block):
    smooth, _ = Smooth(by_channel=False).prepare(block, look(block))
    old, new = block.exported.state_dict, smooth.exported.state_dict
    assert new["qkv.bias"] is old["qkv.bias"]


class Chain(nn.Module):
    """Convolutions of which every channel has a scale of its own, undone in the next."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Conv1d(C, C, 1), nn.Conv1d(C, C, 3, groups=C), nn.Conv1d(C, C, 1)]
        )
        with torch.no_grad():
            for first, second in zip(self.layers, self.layers[1:], strict=False):
                scale = 2 ** torch.empty(C).uniform_(-6, 6)
                first.weight *= scale[:, None, None]
                first.bias *= scale
                second.weight /= scale[:, None, None] if second.groups > 1 else scale[:, None]

    def forward(self, x):
        first, second, last = self.layers
        return last(F.leaky_relu(second(F.relu(first(x.transpose(1, 2)))), 0.1)).mean(-1)


def test_equalizing_gives_both_sides_one_range():
    graph = export(Chain)
    equal, factors = Equalize().prepare(graph, Seen({}, 0))
    assert factors == {}
    assert np.array_equal(graph.run({"x": SAMPLES})["y"], equal.run({"x": SAMPLES})["y"])
    first, second, last = (equal.exported.state_dict[f"layers.{i}.weight"].abs() for i in range(3))
    rows = [first.amax((1, 2)), second.amax((1, 2)), last.amax((0, 2))]
    for before, after in ((rows[0], rows[1]), (rows[1], rows[2])):
        assert (before / after).log2().abs().max() <= 1.5
    assert in_int8(graph, equal) > in_int8(graph) + 6


def test_the_plan_prepares_what_integers_need():
    assert plan_for(SCHEMES["int8"], "quick", None).prepare == ()
    assert plan_for(SCHEMES["w4a16"], "best", None).prepare == ()
    assert plan_for(SCHEMES["fp8"], "balanced", None).prepare == ()
    balanced = plan_for(SCHEMES["w4a8"], "balanced", None).prepare
    assert balanced == (Equalize(), Smooth(levels=7, gain=3e-3))
    tensor = plan_for(scheme_for("int8", "tensor"), "best", None).prepare
    assert tensor == (Equalize(), Smooth(gain=1e-3, by_channel=False))

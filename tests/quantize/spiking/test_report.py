"""Spikes, operations and energy: counted by the report, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.measure import operations
from edgekit.compress.modules.qcfs import QCFS
from edgekit.errors import EdgekitError
from edgekit.model import Input, Model
from edgekit.operators.qcfs import spikes
from edgekit.operators.sign_codes import sign_codes
from edgekit.quantize.spiking.neurons import LIF
from edgekit.quantize.spiking.report import AC_PJ, MAC_PJ, count
from edgekit.work import export

STEPS = 4


class Small(nn.Module):
    """A convolution of real numbers, one and a linear that spikes enter, attention, a linear."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.unit = QCFS(8, 1, STEPS, 0.25, False, form)
        self.next = nn.Conv2d(8, 8, 2, 2)
        self.signed = QCFS(1, -1, STEPS, 0.5, True, form)
        self.mix = nn.Linear(8, 24)
        self.head = nn.Linear(8, 3)
        self.unit.threshold.copy_(torch.linspace(0.2, 0.9, 8))

    def forward(self, x):
        x = self.next(self.unit(self.conv(x)))
        q, k, v = self.mix(self.signed(x.flatten(2)).transpose(1, 2)).chunk(3, -1)
        attended = nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])
        return self.head(attended[:, 0].mean(1))


@pytest.fixture(scope="module", params=["folded", "temporal"])
def model(request):
    torch.manual_seed(0)
    return Model(Small(request.param).eval(), (Input("x", (2, 1, 6, 6)),), ("y",), "small")


def calls(number):
    generator = np.random.default_rng(0)
    return [{"x": generator.standard_normal((2, 1, 6, 6)).astype("float32")} for _ in range(number)]


@pytest.fixture(scope="module")
def found(model):
    return count(export(model), calls(3), "small")


def by_name(found):
    return {layer.name: layer for layer in found.layers}


def test_spikes_are_those_that_neurons_fire(model, found):
    """Each rate is the mean of what ``operators.qcfs.spikes`` gives step by step."""
    entered = {"unit": [], "signed": []}
    for name, kept in entered.items():
        getattr(model.module, name).register_forward_pre_hook(
            lambda unit, args, kept=kept: kept.append(unit.normalised(args[0]))
        )
    with torch.no_grad():
        for call in calls(3):
            model.module(torch.from_numpy(call["x"]))
    z = {name: torch.cat(kept) for name, kept in entered.items()}
    unit = spikes(z["unit"], STEPS).mean()
    signed = (spikes(z["signed"], STEPS) + spikes(-z["signed"], STEPS)).mean()
    layers = by_name(found)
    assert 0 < unit < 1
    assert 0 < signed < 1
    assert layers["next"].rate == pytest.approx(float(unit), abs=1e-6)
    assert layers["mix"].rate == pytest.approx(float(signed), abs=1e-6)
    assert (layers["next"].unit, layers["mix"].unit) == ("unit", "signed")


def test_operations_are_those_of_the_model(model, found):
    assert found.macs * 2 == operations(model)  # of a call, which takes two samples
    layers = by_name(found)
    assert layers["conv"].macs == 8 * 9 * 36
    assert layers["next"].macs == 8 * 8 * 4 * 9
    assert found.samples == 6


def test_accumulates_are_macs_times_steps_times_rate(found):
    layers = by_name(found)
    for name in ("next", "mix"):
        layer = layers[name]
        assert layer.steps == STEPS
        assert layer.acs == pytest.approx(layer.macs * STEPS * layer.rate)
    assert found.acs == layers["next"].acs + layers["mix"].acs


def test_what_real_numbers_enter_stays(found):
    analog = [layer for layer in found.layers if not layer.unit]
    assert [layer.kind for layer in analog] == ["conv", "attention", "linear"]
    assert all(layer.rate is None and layer.acs == 0 for layer in analog)
    assert found.analog == sum(layer.macs for layer in analog)


def test_energy_is_an_estimate_of_both(found):
    told = found.as_dict()["energy_estimate"]
    spiking = (AC_PJ * found.acs + MAC_PJ * found.analog) / 1e6
    assert told["spiking_uj"] == pytest.approx(spiking)
    assert told["float_uj"] == pytest.approx(MAC_PJ * found.macs / 1e6)
    assert "Horowitz" in told["constants"]


class Products(nn.Module):
    """Two units whose product is taken, and one whose values are changed before a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.rare = QCFS(1, -1, STEPS, 0.25, False, "folded")
        self.often = QCFS(1, -1, STEPS, 0.25, False, "folded")
        self.third = QCFS(1, -1, STEPS, 0.25, False, "folded")
        self.linear = nn.Linear(5, 2)

    def forward(self, x):
        product = self.often(x + 1) @ self.rare(x - 1).transpose(1, 2)
        return self.linear(torch.sigmoid(self.third(product)))


def test_the_rarer_spikes_of_two_operands_count():
    model = Model(Products().eval(), (Input("x", (1, 5, 4)),), ("y",), "products")
    x = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0))
    product, linear = count(export(model), [{"x": x.numpy()}], "products").layers
    fires = model.module.rare(x - 1)
    assert product.kind == "product"
    assert product.unit == "rare"
    assert product.rate == pytest.approx(float(fires.mean()) / 0.25 / STEPS)
    assert (linear.unit, linear.rate) == ("", None)


class Along(nn.Module):
    """Neurons along a sequence, whose spikes a linear and a convolution read."""

    def __init__(self) -> None:
        super().__init__()
        self.lif = LIF(4, tau=2.0, threshold=0.5)
        self.linear, self.conv = nn.Linear(4, 6), nn.Conv1d(4, 3, 3)

    def forward(self, x):
        spikes = self.lif(x)
        return self.linear(spikes), self.conv(spikes.transpose(1, 2))


def test_neurons_along_a_sequence_have_one_step_a_position():
    model = Model(Along().eval(), (Input("x", (1, 9, 4)),), ("y", "z"), "along")
    x = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(0))
    found = count(export(model), [{"x": x.numpy()}], "along")
    rate = float(model.module.lif(x).mean())
    assert 0 < rate < 1
    assert found.forms == ("neurons",)
    for layer, macs in zip(found.layers, (9 * 4 * 6, 7 * 3 * 4 * 3), strict=True):
        assert (layer.unit, layer.steps, layer.macs) == ("lif", 1, macs)
        assert layer.rate == pytest.approx(rate)
        assert layer.acs == pytest.approx(macs * rate)


class Coded(nn.Linear):
    """A linear behind signs, which are levels and no spikes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(sign_codes(input))


@pytest.mark.parametrize("kind", [nn.Linear, Coded])
def test_a_model_without_units_says_how_to_make_one(kind):
    model = Model(kind(4, 2).eval(), (Input("input", (1, 4)),), ("y",), "plain")
    with pytest.raises(EdgekitError, match="no spikes to count") as raised:
        count(export(model), [{"input": np.zeros((1, 4), "float32")}], "plain")
    assert "--pass spiking:steps=8" in raised.value.fix

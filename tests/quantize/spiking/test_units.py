"""units: what a spiking unit feeds is stored as the unit's own levels, whatever the effort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit.compress.modules.qcfs import QCFS
from edgekit.data import open_data
from edgekit.edit import Editor
from edgekit.model import Input, Model
from edgekit.quantize.calibrate import observe
from edgekit.quantize.effort import plan_for
from edgekit.quantize.methods.smooth import Smooth
from edgekit.quantize.place import QUANTIZE, place
from edgekit.quantize.post_training import quantize
from edgekit.quantize.ranges.minmax import Range
from edgekit.quantize.schemes import SCHEMES
from edgekit.quantize.sites import find_sites
from edgekit.quantize.spiking.units import scale_behind
from edgekit.quantize.training import finish, groups, trainable
from edgekit.targets.rules import RULES

SCALE, STEPS = 0.15625, 8
SAMPLES = np.random.default_rng(0).standard_normal((16, 5, 12)).astype(np.float32)


class Net(nn.Module):
    """Two linears behind a unit, one through what moves values, and one that reads a sum."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 24), nn.Linear(24, 12)
        self.moved, self.mixed = nn.Linear(12, 6), nn.Linear(24, 6)
        self.unit = QCFS(24, -1, STEPS, SCALE, False, "folded")
        with torch.no_grad():
            self.unit.threshold.uniform_(0.5, 1.5)

    def forward(self, x):
        h = self.unit(self.first(x))
        padded = F.pad(h.reshape(-1, 2, 12).transpose(0, 1).flip(0), (0, 0, 0, 1))
        return self.second(h), self.moved(padded), self.mixed(h + x.repeat(1, 1, 2))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    model = Model(Net().eval(), (Input("x", (1, 5, 12)),), ("a", "b", "c"), "net")
    return model.export()


def quantized(graph, scheme, effort):
    plan = plan_for(SCHEMES[scheme], effort, None)
    return quantize(graph, open_data(SAMPLES, graph.inputs, None), plan)


def test_the_unit_is_found_through_what_moves_values(graph):
    editor = Editor(graph)
    calls = {node.name: node for node in editor.calls()}
    found = {site.name: scale_behind(editor, calls[site.node], site) for site in find_sites(editor)}
    assert {name for name, scale in found.items() if scale == SCALE} == {
        "second.input",
        "moved.input",
    }
    assert {scale for scale in found.values() if scale is not None} == {SCALE}


@pytest.mark.parametrize(
    ("scheme", "effort"),
    [("int8", "quick"), ("int8", "balanced"), ("int8", "best"), ("w4a8", "quick")],
)
def test_levels_are_the_units_and_nothing_is_lost(graph, scheme, effort):
    made = quantized(graph, scheme, effort)
    assert made.table.sites["second.input"].scale == (SCALE,)
    assert made.table.sites["moved.input"].scale == (SCALE,)
    assert made.table.sites["mixed.input"].scale != (SCALE,)
    placed = Editor(place(made.applied(graph), made.table, RULES["coreml"]))
    scales = [node.args[1] for node in placed.calls(str(QUANTIZE))]
    assert scales.count(SCALE) == 2


def test_smoothing_divides_no_levels(graph, monkeypatch):
    monkeypatch.setattr(Smooth, "_pays", lambda *_: True)
    data = open_data(SAMPLES, graph.inputs, None)
    seen = observe(graph, find_sites(Editor(graph)), data, Range())
    _, divided = Smooth(alpha=0.5).prepare(graph, seen)
    assert set(divided) == {"first.input", "mixed.input"}


def test_training_keeps_the_units_step_and_moves_the_others(graph):
    made = quantized(graph, "int8", "quick")
    module = trainable(graph, made)
    optimizer = torch.optim.Adam(groups(module, 1e-2, 1e-1))
    for sample in torch.from_numpy(SAMPLES[:4]):
        optimizer.zero_grad()
        sum(result.square().mean() for result in module(sample[None])).backward()
        optimizer.step()
    before, after = made.table.sites, finish(module, graph, made).table.sites
    assert after["second.input"] == before["second.input"]
    assert after["moved.input"] == before["moved.input"]
    assert after["first.input"] != before["first.input"]
    assert after["second.weight"] != before["second.weight"]

"""Calibration and the scale table: numbers by hand, and the file as a user edits it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from edgekit.data import open_data
from edgekit.edit import Editor
from edgekit.errors import EdgekitError
from edgekit.model import Input, Model
from edgekit.quantize.effort import plan_for
from edgekit.quantize.place import place
from edgekit.quantize.post_training import quantize
from edgekit.quantize.scales import ScaleTable, half_exact
from edgekit.quantize.schemes import SCHEMES
from edgekit.quantize.sites import find_sites
from edgekit.targets.rules import RULES

QUICK = plan_for(SCHEMES["int8"], "quick", None)
SAMPLES = np.array([[1.0, -2.0, 0.5], [0.0, 3.81, -6.35]], np.float32)


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 2, bias=False)
        self.last = torch.nn.Linear(2, 4)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 0, -0.5], [0, 2.54, 0]]))

    def forward(self, x):
        return self.last(self.first(x))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return Model(Two(), (Input("x", (1, 3)),), ("y",), "two").export()


@pytest.fixture
def table(graph):
    data = open_data(SAMPLES, graph.inputs, None)
    return quantize(graph, data, QUICK).table


def test_half_exact_gives_the_least_half_not_below():
    random = np.random.default_rng(0)
    scales = np.concatenate([10 ** random.uniform(-7, 3, 10_000), [2.0**-24, 1.0, 0.1]])
    halves = half_exact(scales)
    assert np.array_equal(halves, halves.astype(np.float16).astype(np.float64))
    assert (halves >= scales).all()
    below = np.nextafter(halves.astype(np.float16), np.float16(0)).astype(np.float64)
    assert (below < scales).all()
    assert half_exact(np.array([0.0, 1e-30])).tolist() == [2.0**-24] * 2


def test_scales_are_the_largest_magnitude_over_127_rounded_up(table):
    by_hand = {
        "first.input": [6.35 / 127],
        "last.input": [2.54 * 3.81 / 127],
        "first.weight": [1.0 / 127, 2.54 / 127],
    }
    for name, exact in by_hand.items():
        found = np.array(table.sites[name].scale)
        assert (found >= np.float32(exact) * (1 - 1e-6)).all()
        assert np.allclose(found, exact, rtol=2**-10)
        assert np.array_equal(found, found.astype(np.float16))
    assert table.samples == 2
    assert {entry.kind for entry in table.sites.values()} == {"input", "weight"}


def test_a_table_survives_its_file(table, tmp_path):
    table.save(tmp_path / "scales.json")
    assert ScaleTable.load(tmp_path / "scales.json") == table


def test_nothing_to_calibrate_with_or_to_quantize(graph):
    with pytest.raises(EdgekitError, match="nothing to quantize"):
        quantize(graph, open_data(SAMPLES, graph.inputs, None), QUICK, ["*"])
    huge = open_data(np.full((1, 3), 3e38, np.float32), graph.inputs, None)
    with pytest.raises(EdgekitError, match=r"last\.input is not finite"):
        quantize(graph, huge, QUICK)


def test_excluded_modules_have_no_sites(graph):
    names = {site.name for site in find_sites(Editor(graph), ["fir*"])}
    assert names == {"last.input", "last.weight"}
    with pytest.raises(EdgekitError, match="'middle' matches no") as caught:
        find_sites(Editor(graph), ["middle"])
    assert "first, last" in caught.value.why


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda sites: sites.update(other=sites["first.input"]), "belongs to another model"),
        (lambda sites: sites.pop("last.weight"), "last.input without last.weight"),
        (lambda sites: sites["first.weight"]["scale"].pop(), "does not fit first.weight"),
        (lambda sites: sites["first.input"].update(scale=[0.0]), "is not a scale table"),
        (lambda sites: sites["first.input"].update(scale=[float("inf")]), "is not a scale table"),
        (lambda sites: sites["first.input"].update(dtype="int3"), "is not a scale table"),
    ],
)
def test_a_badly_edited_table_is_refused(graph, table, tmp_path, spoil, message):
    content = json.loads(table.model_dump_json())
    spoil(content["sites"])
    path = tmp_path / "scales.json"
    path.write_text(json.dumps(content))
    with pytest.raises(EdgekitError, match=message):
        place(graph, ScaleTable.load(path), RULES["onnxruntime"])


def test_a_layer_taken_out_of_the_table_stays_float(graph, table):
    less = table.without({"last.input", "last.weight"})
    placed = place(graph, less, RULES["coreml"])
    (site,) = {site.module for site in find_sites(Editor(placed))}
    assert site == "last"

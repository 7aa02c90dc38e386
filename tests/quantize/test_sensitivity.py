"""Sensitivity: the layer that hurts comes first, and the short way gives the long way's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.data import open_data
from edgekit.drift import compare
from edgekit.errors import EdgekitError
from edgekit.model import Input, Model
from edgekit.quantize.effort import plan_for
from edgekit.quantize.place import place
from edgekit.quantize.post_training import quantize
from edgekit.quantize.schemes import SCHEMES
from edgekit.quantize.sensitivity import Damage, sensitivity, suggest, together
from edgekit.targets.rules import RULES

IMAGES = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)
OUTLIER = 300.0


class Net(torch.nn.Module):
    """Two branches and a classifier; one channel of what enters ``bad`` is an outlier."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 4, stride=4)
        self.norm = torch.nn.LayerNorm(16)
        self.good, self.bad, self.side = (torch.nn.Linear(16, 16) for _ in range(3))
        self.head = torch.nn.Linear(16, 5)
        self.boost = torch.ones(16)
        self.boost[3] = OUTLIER
        with torch.no_grad():
            self.bad.weight[:, 3] /= OUTLIER

    def forward(self, x):
        x = self.norm(self.stem(x).flatten(2).transpose(1, 2))
        left = self.good(x) + self.bad(x * self.boost)
        return self.head(torch.tanh(left + torch.tanh(self.side(x))).mean(1))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return Model(Net(), (Input("x", (2, 3, 8, 8)),), ("y",), "net").export()


@pytest.fixture(scope="module")
def batches():
    return [{"x": IMAGES[start : start + 2]} for start in range(0, 8, 2)]


def quantized(graph, precision):
    plan = plan_for(SCHEMES[precision], "quick", None)
    return quantize(graph, open_data(IMAGES, graph.inputs, None), plan, batch_size=2).table


@pytest.fixture(scope="module")
def table(graph):
    return quantized(graph, "int8")


@pytest.fixture(scope="module")
def damages(graph, table, batches):
    return sensitivity(graph, table, batches, labels=[0, 1, 2, 3, 4, 0, 1, 2])


def test_the_planted_layer_is_first_and_suggested(damages):
    assert next(d.module for d in damages) == "bad"
    assert {d.module for d in damages} == {"stem", "good", "bad", "side", "head"}
    assert suggest(damages) == ("bad",)
    assert damages[0].sqnr_output < min(d.sqnr_output for d in damages[1:])
    assert [d.drift for d in damages] == sorted((d.drift for d in damages), reverse=True)


@pytest.mark.parametrize("precision", ["int8", "w8a16", "w4a16", "w4a8", "fp8"])
def test_running_the_rest_again_equals_running_all(precision, graph, batches):
    table = quantized(graph, precision)
    expected = [graph.run(batch) for batch in batches]
    for damage in sensitivity(graph, table, batches):
        others = {n for n in table.sites if n.rpartition(".")[0] != damage.module}
        alone = place(graph, table.without(others), RULES["coreml"], precision)
        drift = compare(expected, [alone.run(batch) for batch in batches])
        assert damage.drift == pytest.approx(drift.relative, rel=1e-4)
        assert damage.agreement == drift.top1_agreement


def test_weights_alone_leave_inputs_exact(graph, batches):
    found = sensitivity(graph, quantized(graph, "w8a16"), batches)
    assert all(d.sqnr_input is None for d in found)
    assert all(d.loss is None for d in found)


def test_counts_by_hand(damages):
    found = {d.module: d for d in damages}
    assert found["good"].parameters == 16 * 16
    assert found["good"].operations == 4 * 16 * 16
    assert found["stem"].operations == 4 * 16 * 3 * 4 * 4
    assert found["head"].operations == 16 * 5
    assert all(d.loss is not None for d in damages)


def test_modules_that_are_not_quantized_are_left_out(graph, table, batches):
    found = sensitivity(graph, table, batches[:1], spared=("stem",))
    assert {d.module for d in found} == {"good", "bad", "side", "head"}
    with pytest.raises(EdgekitError, match="no module to examine"):
        sensitivity(graph, table.without(set(table.sites)), batches)


def damage(module, drift):
    return Damage(module, "linear", 1, 1, None, 40.0, 40.0, drift, None, None)


def test_nothing_is_suggested_where_nothing_stands_out():
    even = [damage(str(index), 0.01 + 0.001 * index) for index in range(8)]
    assert suggest(even) == ()
    assert together(even[:1]) == pytest.approx(0.01)


def test_suggestions_end_once_the_rest_is_harmless():
    rows = [damage("a", 1.0), damage("b", 0.2), *(damage(str(n), 0.01) for n in range(6))]
    assert suggest(rows) == ("a",)
    assert together([damage("a", 3.0), damage("b", 4.0)]) == pytest.approx(5)

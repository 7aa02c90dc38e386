"""spiking_units, truncated_units: in plain operators, in every runtime, forms equal bit for bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import targets
from edgekit.compress.modules.qcfs import QCFS
from edgekit.converters.interface import is_discrete, metadata
from edgekit.converters.rewrites import spiking_units, truncated_units
from edgekit.edit import Editor
from edgekit.model import BATCH, Input, Model
from edgekit.operators.qcfs import FORMS
from edgekit.recipe import Recipe
from edgekit.targets.rules import RULES
from edgekit.targets.runtimes import runtime_for
from edgekit.work import Work

SAMPLES = np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32)


class Vit(nn.Module):
    """Patches of a spiking image, a norm, an MLP with a spiking unit and a dropout, a head."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.encode = QCFS(3, 1, 3, 0.5, True, form)
        self.patch = nn.Conv2d(3, 12, 4, stride=4)
        self.norm, self.first = nn.LayerNorm(12), nn.Linear(12, 24)
        self.unit = QCFS(24, -1, 4, 0.15625, False, form)
        self.drop = nn.Dropout(0.1)
        self.second, self.head = nn.Linear(24, 12), nn.Linear(12, 5)
        self.encode.threshold.uniform_(1, 2)
        self.unit.threshold.uniform_(0.5, 1)

    def forward(self, x):
        x = self.patch(self.encode(x)).flatten(2).transpose(1, 2)
        levels = self.drop(self.unit(self.first(self.norm(x))))
        return self.head((x + self.second(levels)).mean(1))


class Both(nn.Module):
    """The same in either form, side by side."""

    def __init__(self):
        super().__init__()
        self.forms = nn.ModuleDict({form: Vit(form) for form in FORMS})

    def forward(self, x):
        return tuple(module(x) for module in self.forms.values())


def model(batch=1):
    return Model(Both().eval(), (Input("x", (batch, 3, 8, 8)),), FORMS, "both")


@pytest.fixture(scope="module")
def work():
    """The model in a precision, to be lowered and converted."""
    made = {}
    for precision in ("fp32", "int8"):
        recipe = Recipe.check({"model": "mine", "precision": precision, "effort": "quick"}, "test")
        made[precision] = Work(recipe, list(SAMPLES))
        made[precision].original = model()
    return made


def operators(graph):
    return [str(node.target) for node in Editor(graph).calls()]


def test_written_out_it_is_the_same_at_any_batch():
    graph = model(BATCH).export()
    assert graph.discrete
    assert operators(graph).count("edgekit.qcfs.default") == 4
    written = spiking_units.rewrite(graph)
    assert written.discrete
    assert not [name for name in operators(written) if "edgekit" in name]
    for batch in (1, 5):
        before, after = (each.run({"x": SAMPLES[:batch]}) for each in (graph, written))
        assert np.array_equal(before["folded"], after["folded"])
        assert np.array_equal(after["folded"], after["temporal"])


def test_the_factor_is_stored_and_the_threshold_is_not(work):
    graph = work["fp32"].graph
    state = spiking_units.rewrite(graph).exported.state_dict
    assert [name for name in graph.exported.state_dict if "threshold" in name]
    assert not [name for name in state if "threshold" in name]
    assert state["qcfs_levels"].shape == (1, 3, 1, 1)
    unit = work["fp32"].model.module.forms["folded"].unit
    assert torch.equal(state["qcfs_1_levels"].flatten(), 4 / unit.threshold)


def test_integers_are_truncated_where_a_product_reads_a_folded_unit_without_sign(work):
    made = work["int8"].quantize()
    counts = {}
    for name in ("cpu", "cpu-openvino"):
        graph = work["int8"].lower(targets.load(name), made)
        counts[name] = operators(graph).count("aten.floor.default")
    assert counts == {"cpu": 2, "cpu-openvino": 3}
    plain = work["fp32"].graph
    assert operators(truncated_units.rewrite(plain)) == operators(plain)


class Pixels(nn.Module):
    """An MLP with a spiking unit on each pixel of an image, as convolutions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.first = nn.Conv2d(3, 12, 2, stride=2), nn.Conv2d(12, 24, 1)
        self.unit = QCFS(24, 1, 4, 0.15625, False, "folded")
        self.second = nn.Conv2d(24, 5, 1)
        self.unit.threshold.uniform_(0.5, 1)

    def forward(self, x):
        return self.second(self.unit(self.first(self.patch(x)))).mean((2, 3))


def test_integers_are_truncated_before_they_are_permuted(tmp_path):
    recipe = Recipe.check({"model": "mine", "precision": "int8", "effort": "quick"}, "test")
    made, cpu = Work(recipe, list(SAMPLES)), targets.load("cpu")
    made.original = Model(Pixels().eval(), (Input("x", (1, 3, 8, 8)),), ("y",), "pixels")
    quantized = made.quantize()
    assert "aten.floor.default" not in operators(made.lower(cpu, quantized))
    path = made.artifact(cpu, "onnx", tmp_path, quantized)
    drift, _, failure = made.judge(path, "onnxruntime")
    assert failure == ""
    assert drift.cosine > 0.99


def test_every_runtime_without_units_of_its_own_has_them_written_out():
    writing = [rules.rewrites for rules in RULES.values() if "qcfs" not in rules.native]
    assert all("spiking_units" in rewrites for rewrites in writing)
    onnxruntime = RULES["onnxruntime"].rewrites
    assert onnxruntime.index("truncated_units") < onnxruntime.index("spiking_units")


@pytest.mark.parametrize(
    ("target", "precision", "needs"),
    [
        ("cpu", "fp32", "onnxruntime"),
        ("cpu", "int8", "onnxruntime"),
        ("cpu-openvino", "int8", "openvino"),
        ("jetson-xavier-nx", "int8", "onnxruntime"),
        ("iphone-15-pro", "int8", "coremltools"),
    ],
)
def test_forms_are_equal_and_close_to_the_source_in(target, precision, needs, work, tmp_path):
    pytest.importorskip(needs)
    made, device = work[precision], targets.load(target)
    format, runtime = device.formats[0], runtime_for(device.runtime, device.formats[0])
    quantized = made.quantize() if made.recipe.scheme else None
    path = made.artifact(device, format, tmp_path, quantized)
    drift, _, failure = made.judge(path, runtime)
    assert failure == ""
    assert drift.cosine > 0.99
    for call in made.run(path, runtime):
        assert np.array_equal(call["folded"], call["temporal"])
        assert call["folded"].any()
    if format == "onnx":
        import onnx

        assert is_discrete(onnx.load(path))


def test_tensorrt_builds_both(work, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    made = work["int8"]
    path = made.artifact(targets.load("rtx-4090"), "tensorrt", tmp_path, made.quantize())
    assert path.stat().st_size > 0


def test_only_a_model_of_levels_is_written_down_as_one(work):
    graph = work["fp32"].graph
    assert metadata(graph)["edgekit.discrete"] == "true"
    assert "edgekit.discrete" not in metadata(dataclasses.replace(graph, discrete=False))

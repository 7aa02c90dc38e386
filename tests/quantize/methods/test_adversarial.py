"""A trained transformer made to hold outliers: quick loses it, balanced recovers it."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit import families
from edgekit.data import open_data
from edgekit.quantize.effort import plan_for
from edgekit.quantize.place import place
from edgekit.quantize.post_training import quantize
from edgekit.quantize.schemes import SCHEMES
from edgekit.targets.rules import RULES

ROOT = Path(__file__).resolve().parents[3]


def load_script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model():
    found = families.load(f"timm/{ROOT}/examples/digits_vit", families.Options())
    return found.with_batch("dynamic")


@pytest.fixture(scope="module")
def spoiled(model):
    spoil = load_script(ROOT / "benchmarks" / "outliers.py").spoil
    return dataclasses.replace(model, module=spoil(model.module))


@pytest.fixture(scope="module")
def graph(spoiled):
    return spoiled.export()


@pytest.fixture(scope="module")
def images(model, tmp_path_factory):
    """The calibration set, and the 360 evaluation images with their labels."""
    folder = tmp_path_factory.mktemp("images")
    load_script(ROOT / "examples" / "digits.py").write(folder)
    sets = [
        open_data(folder / name, model.inputs, model.preprocess)
        for name in ("calibration", "evaluation")
    ]
    x = np.stack([sample["x"] for sample in sets[1]])
    return sets[0].take(64, 0), x, np.array(sets[1].labels)


def accuracy(graph, images):
    logits = graph.run({"x": images[1]})["logits"]
    return 100 * (logits.argmax(1) == images[2]).mean()


@pytest.fixture(scope="module")
def placed(graph, images):
    """The spoiled model in INT8 at each effort, and what balanced divides as the model runs."""
    made = {
        effort: quantize(graph, images[0], plan_for(SCHEMES["int8"], effort, None), batch_size=32)
        for effort in ("quick", "balanced")
    }
    graphs = {
        effort: place(found.applied(graph), found.table, RULES["coreml"])
        for effort, found in made.items()
    }
    return graphs, made["balanced"].factors


def test_outliers_leave_the_float_model_as_it_is(model, spoiled, images):
    x = torch.from_numpy(images[1][:32])
    with torch.no_grad():
        before, after = model.module(x), spoiled.module(x)
    assert torch.allclose(before, after, atol=1e-4)


def test_quick_loses_and_balanced_recovers(graph, placed, images):
    graphs, _ = placed
    real = accuracy(graph, images)
    assert real > 97
    assert accuracy(graphs["quick"], images) < real - 20
    assert accuracy(graphs["balanced"], images) >= real - 0.5


def test_every_outlier_is_folded_at_no_cost(placed):
    assert placed[1] == {}


def test_a_model_of_another_kind_is_not_spoiled():
    with pytest.raises(ValueError, match="Linear has no block"):
        load_script(ROOT / "benchmarks" / "outliers.py").spoil(torch.nn.Linear(2, 2))

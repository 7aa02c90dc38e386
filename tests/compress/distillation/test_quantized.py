"""Quantization-aware training by distillation: what ships is nearer to the float model."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit import families
from edgekit.compress import Context
from edgekit.compress.distill import Distill
from edgekit.compress.distillation import trainer
from edgekit.compress.distillation.quantized import train_quantized
from edgekit.data import open_data
from edgekit.errors import EdgekitError
from edgekit.families import Options
from edgekit.quantize.effort import plan_for
from edgekit.quantize.place import place
from edgekit.quantize.post_training import quantize
from edgekit.quantize.schemes import SCHEMES
from edgekit.targets.rules import RULES
from edgekit.work import export

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def images():
    sys.path.insert(0, str(EXAMPLES))
    try:
        from digits import load_images, splits
        from train_digits import prepared
    finally:
        sys.path.remove(str(EXAMPLES))
    pixels, labels = load_images()
    training, _, held_out = splits(labels)
    x = prepared(pixels).numpy()
    return x[training][:256], x[held_out][:128]


@pytest.fixture(scope="module")
def graph():
    model = families.load(f"timm/{EXAMPLES / 'digits_vit'}", Options())
    return export(model.with_batch("dynamic"))


@pytest.fixture(scope="module")
def w4a8(graph, images):
    data = open_data(images[0][:32], graph.inputs, None)
    return quantize(graph, data, plan_for(SCHEMES["w4a8"], "quick", None), batch_size=16)


def error(graph, made, x):
    wanted = graph.run({"x": x})["logits"]
    given = place(made.applied(graph), made.table, RULES["coreml"]).run({"x": x})["logits"]
    return np.square(given - wanted).mean() / np.square(wanted).mean()


def test_training_lowers_the_error_on_new_images(graph, w4a8, images):
    data = open_data(images[0], graph.inputs, None)
    step = Distill(steps=12, batch_size=32, rate=1e-4, losses=("mse",))
    done = train_quantized(step, graph, w4a8, Context(training=data))
    assert error(graph, done, images[1]) < error(graph, w4a8, images[1]) / 1.5
    assert done.table.method == "lsq"


def test_a_stopped_training_ends_as_one_that_was_not(graph, w4a8, images, tmp_path, monkeypatch):
    data = open_data(images[0][:16], graph.inputs, None)
    step = Distill(steps=3, batch_size=4, checkpoint_every=1)
    context = Context(data=data, folder=tmp_path)
    whole = train_quantized(step, graph, w4a8, dataclasses.replace(context, folder=None))

    def stopped(run, number, real=trainer._Run._step):
        if number == 2:
            raise KeyboardInterrupt
        return real(run, number)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Run, "_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_quantized(step, graph, w4a8, context)
    again = train_quantized(step, graph, w4a8, context)
    assert again.table == whole.table
    assert again.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(again.tensors[name], whole.tensors[name]) for name in whole.tensors)


@pytest.mark.parametrize(
    "options", [{"losses": ("features",)}, {"layerwise_steps": 1}, {"teacher": "timm/vit"}]
)
def test_what_a_graph_has_not_is_refused(options, graph, w4a8, images):
    context = Context(data=open_data(images[0], graph.inputs, None))
    with pytest.raises(EdgekitError, match="cannot be trained with"):
        train_quantized(Distill(**options), graph, w4a8, context)


def test_a_graph_of_one_batch_size_is_refused(w4a8, images):
    fixed = export(families.load(f"timm/{EXAMPLES / 'digits_vit'}", Options()))
    context = Context(data=open_data(images[0], fixed.inputs, None))
    with pytest.raises(EdgekitError, match="one batch size"):
        train_quantized(Distill(), fixed, w4a8, context)

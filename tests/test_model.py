"""Model and Input: names, dynamic sizes, and the one export."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.errors import EdgekitError
from edgekit.model import BATCH, Input, Model


class Pair(torch.nn.Module):
    def forward(self, ids, gain):
        return ids.float().view(ids.shape[0], -1) * gain, ids


INPUTS = (Input("ids", (1, 2, 3), "int64"), Input("gain", (1, 1)))


def feed(count):
    ids = np.arange(count * 6).reshape(count, 2, 3)
    return {"ids": ids, "gain": np.full((count, 1), 2, np.float32)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x:1x3x8x8", Input("x", (1, 3, 8, 8))),
        ("ids:1x128:int64", Input("ids", (1, 128), "int64")),
        ("x:4", Input("x", (4,))),
    ],
)
def test_inputs_are_parsed(text, expected):
    assert Input.parse(text) == expected


@pytest.mark.parametrize("text", ["", "x", ":1x3", "x:", "x:1xbx3", "x:1x-3", "x:1x3:double"])
def test_other_forms_are_quoted_in_the_error(text):
    with pytest.raises(EdgekitError) as caught:
        Input.parse(text)
    assert repr(text) in caught.value.what


def test_batches():
    model = Model(Pair(), INPUTS, ("y", "same"), "pair")
    assert model.with_batch(4).inputs[0].shape == (4, 2, 3)
    dynamic = model.with_batch("dynamic").inputs[0]
    assert dynamic.shape == (BATCH, 2, 3)
    assert dynamic.sample_shape == (2, 3)
    assert dynamic.concrete(5) == (5, 2, 3)
    assert model.inputs[0].shape == (1, 2, 3)


def test_export_equals_the_module_and_has_no_views():
    graph = Model(Pair(), INPUTS, ("y", "same"), "pair").export()
    found = graph.run(feed(1))
    assert found["y"].tolist() == [[0, 2, 4, 6, 8, 10]]
    assert found["same"].dtype == np.int64
    targets = {str(node.target) for node in graph.exported.graph.nodes}
    assert "aten.reshape.default" in targets
    assert "aten.view.default" not in targets


def test_one_dynamic_batch_for_all_inputs():
    graph = Model(Pair(), INPUTS, ("y", "same"), "pair").with_batch("dynamic").export()
    for count in (1, 2, 7):
        assert graph.run(feed(count))["y"].shape == (count, 6)


def test_a_model_in_training_mode_is_exported_for_evaluation():
    module = torch.nn.Dropout(0.9).train()
    graph = Model(module, (Input("input", (1, 64)),), ("y",), "dropout").export()
    ones = np.ones((1, 64), np.float32)
    assert np.array_equal(graph.run({"input": ones})["y"], ones)


def test_what_cannot_be_exported_says_why():
    class Branches(torch.nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(EdgekitError, match=r"branches cannot be exported") as caught:
        Model(Branches(), (Input("x", (1, 3)),), ("y",), "branches").export()
    assert "data-dependent" in caught.value.why
    assert caught.value.__cause__ is not None

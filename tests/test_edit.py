"""Editor: a private copy whose signature stays true to its graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.edit import Editor, module_path
from edgekit.model import Input, Model

X = np.arange(8, dtype=np.float32).reshape(2, 4)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
        self.register_buffer("shift", torch.ones(4))
        self.plain = torch.full((4,), 2.0)

    def forward(self, x):
        return (self.inner(x) + self.shift) * self.plain


@pytest.fixture
def graph():
    torch.manual_seed(0)
    return Model(Net(), (Input("x", (2, 4)),), ("y",), "net").export()


def test_tensors_behind_placeholders_are_found_by_kind(graph):
    editor = Editor(graph)
    (linear,) = editor.calls("aten.linear.default")
    assert editor.tensor_name(linear.args[1]) == "inner.0.weight"
    assert editor.tensor(linear.args[1]).shape == (4, 4)
    assert editor.tensor(linear.args[0]) is None  # The user's input is no constant.
    (add,), (mul,) = editor.calls("aten.add.Tensor"), editor.calls("aten.mul.Tensor")
    assert editor.tensor(add.args[1]).tolist() == [1] * 4
    assert editor.tensor(mul.args[1]).tolist() == [2] * 4
    assert module_path(linear) == "inner.0"
    assert module_path(mul) == ""


def test_the_original_stays_as_it_was(graph):
    before = graph.run({"x": X})["y"]
    editor = Editor(graph)
    (relu,) = editor.calls("aten.relu.default")
    editor.replace(relu, editor.call(torch.ops.aten.neg.default, relu.args[0], like=relu))
    edited = editor.done()
    assert np.array_equal(graph.run({"x": X})["y"], before)
    assert not np.array_equal(edited.run({"x": X})["y"], before)


def test_a_replacement_takes_over_name_and_place(graph):
    editor = Editor(graph)
    (relu,) = editor.calls("aten.relu.default")
    name = relu.name
    editor.replace(relu, editor.call(torch.ops.aten.neg.default, relu.args[0], like=relu))
    (neg,) = Editor(editor.done()).calls("aten.neg.default")
    assert neg.name == name
    assert module_path(neg) == "inner.1"


def test_new_buffers_are_shared_by_name_and_unused_tensors_dropped(graph):
    editor = Editor(graph)
    (add,) = editor.calls("aten.add.Tensor")
    two = editor.buffer("two", torch.full((4,), 5.0))
    assert editor.buffer("two", torch.zeros(4)) is two
    add.update_arg(1, two)
    edited = editor.done()
    assert edited.exported.state_dict["two"].tolist() == [5] * 4
    assert "shift" not in edited.exported.state_dict
    difference = edited.run({"x": X})["y"] - graph.run({"x": X})["y"]
    assert np.allclose(difference, (5 - 1) * 2)


def test_shapes_and_dtypes_are_inferred_anew(graph):
    editor = Editor(graph)
    (mul,) = editor.calls("aten.mul.Tensor")
    end = editor.fx.output_node()
    with editor.fx.inserting_before(end):
        cast = editor.fx.call_function(
            torch.ops.aten._to_copy.default, (mul,), {"dtype": torch.half}
        )
    end.replace_input_with(mul, cast)
    edited = editor.done()
    (node,) = Editor(edited).calls("aten._to_copy.default")
    assert node.meta["val"].dtype == torch.float16
    assert edited.run({"x": X})["y"].dtype == np.float16

"""Inputs: calls of the sizes that were asked for, of real samples, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import EdgekitError
from edgekit.latency.inputs import Taken
from edgekit.latency.plan import Limits, Plan, parse_shapes
from edgekit.model import Dim, Input

BATCH, LENGTH = Dim("batch", 1, 1, 8), Dim("length", 1, 4, 16)
IDS, MASK = (Input(name, (BATCH, LENGTH), "int64") for name in ("ids", "mask"))
TEXT = Taken("text.onnx", None, (IDS, MASK), strict=False)
IMAGE = Taken("image.onnx", 1, (Input("x", (1, 3, 8, 8)),), strict=False)
BASE = {
    "ids": np.arange(12).reshape(3, 4),
    "mask": np.ones((3, 4), np.int64),
}
PIXELS = {"x": np.random.default_rng(0).random((5, 3, 8, 8), np.float32)}


def test_without_wishes_there_is_one_point_of_the_artifacts_own_batch():
    (point,) = IMAGE.sized(PIXELS, (), ())
    assert (point.batch, point.shapes) == (1, {"x": [1, 3, 8, 8]})
    assert [call["x"].tolist() for call in point.calls] == [[x.tolist()] for x in PIXELS["x"]]


def test_batches_are_samples_in_order_repeated_where_there_are_too_few():
    small, large = TEXT.sized(BASE, (2, 5), ())
    assert len(small.calls) == 1
    assert small.calls[0]["ids"].tolist() == BASE["ids"][:2].tolist()
    assert large.calls[0]["ids"].tolist() == BASE["ids"][[0, 1, 2, 0, 1]].tolist()


def test_a_shape_repeats_values_and_the_other_inputs_follow():
    short, long = TEXT.sized(BASE, (), ("ids:2x3", "ids:1x6"))
    assert short.shapes == {"ids": [2, 3], "mask": [2, 3]}
    assert long.calls[0]["ids"].tolist() == [[0, 1, 2, 3, 0, 1]]
    assert long.calls[0]["mask"].shape == (1, 6)
    assert long.calls[0]["ids"].flags["C_CONTIGUOUS"]


def test_inputs_that_share_no_size_stay_as_they_are():
    taken = Taken("m.onnx", None, (IDS, Input("x", (BATCH, 7))), strict=False)
    base = {"ids": BASE["ids"], "x": np.zeros((3, 7), np.float32)}
    (point,) = taken.sized(base, (), ("ids:2x9",))
    assert point.shapes == {"ids": [2, 9], "x": [2, 7]}


@pytest.mark.parametrize(
    ("taken", "base", "batches", "shapes", "said"),
    [
        (IMAGE, PIXELS, (4,), (), "image.onnx takes 1 sample a call, not 4"),
        (IMAGE, PIXELS, (), ("x:2x3x8x8",), "Its size on axis 0 is fixed: 1"),
        (IMAGE, PIXELS, (), ("x:1x4x8x8",), "Its size on axis 1 is fixed: 3"),
        (IMAGE, PIXELS, (), ("x:1x3x8",), "It has 4 sizes: 1x3x8x8"),
        (IMAGE, PIXELS, (), ("y:1x3x8x8",), "image.onnx has no input 'y'"),
        (TEXT, BASE, (), ("ids:1x3,mask:1x4",), "gives length two sizes: 3 and 4"),
        (TEXT, BASE, (), ("ids:1x3,mask:2x3",), "several batches"),
        (Taken("e.plan", None, (IDS, MASK), True), BASE, (9,), (), "takes 1 to 8 samples"),
        (Taken("e.plan", None, (IDS, MASK), True), BASE, (), ("ids:1x17",), "built for 1 to 16"),
    ],
)
def test_what_an_artifact_does_not_take_is_refused(taken, base, batches, shapes, said):
    with pytest.raises(EdgekitError, match=said):
        taken.sized(base, batches, shapes)


def test_an_onnx_files_stated_range_is_no_limit():
    (point,) = TEXT.sized(BASE, (9,), ())
    assert point.batch == 9


def test_random_inputs_have_the_usual_sizes_and_are_the_same_each_time():
    drawn = Taken("m", None, (IDS, Input("x", (BATCH, 5))), False).random()
    again = Taken("m", None, (IDS, Input("x", (BATCH, 5))), False).random()
    assert {name: value.shape for name, value in drawn.items()} == {"ids": (1, 4), "x": (1, 5)}
    assert drawn["x"].tolist() == again["x"].tolist()
    assert drawn["x"].std() > 0


def test_unknown_inputs_ask_for_a_reference():
    with pytest.raises(EdgekitError, match="--reference"):
        Taken("m.mlpackage", 1, (), True).random()


@pytest.mark.parametrize("text", ["x", "x:", "x:1xa", "x:1x0", ":1x2", "1x3"])
def test_malformed_shapes(text):
    with pytest.raises(EdgekitError, match="NAME:1x3x224x224"):
        parse_shapes(text)


def test_a_plan_refuses_what_has_no_meaning():
    with pytest.raises(EdgekitError, match="first size is the batch"):
        Plan(batches=(1,), shapes=("x:1x2",))
    with pytest.raises(EdgekitError, match="throughput"):
        Plan(streams=(2,))
    with pytest.raises(EdgekitError, match="threads must be at least 1, not 0"):
        Plan(threads=(1, 0))
    with pytest.raises(EdgekitError, match="seconds must be more than 0, not 0"):
        Limits(seconds=0)
    assert Plan(limits=Limits(5)).as_dict()["warmup"] == 5

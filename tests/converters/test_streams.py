"""streams: a graph cut by stream and step computes what the whole graph does, bit for bit."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit import families, targets
from edgekit.converters.streams import Split, split
from edgekit.errors import EdgekitError
from edgekit.families import Options
from edgekit.model import Dim, Graph, Input, Model
from edgekit.recipe import Recipe
from edgekit.work import Work, export

TOWERS = {"tokens": [12, 6], "features": [8, 4], "widths": [16, 8], "heads": 2, "depth": 3}
BRANCHES = {
    "img_size": 48, "img_scale": [1.0, 1.0], "patch_size": [12, 16], "embed_dim": [16, 32],
    "num_heads": [2, 2], "depth": [[1, 2, 0], [1, 2, 0]], "num_classes": 5,
}  # fmt: skip


def random(name: str, **arguments: Any) -> Model:
    return families.load(name, Options(random_weights=True, arguments=arguments))


def towers() -> Model:
    return random("reference/two_tower", **TOWERS)


def crossvit() -> Model:
    pytest.importorskip("timm")
    return random("timm/crossvit_9_240", **BRANCHES)


def samples(model: Model, batch: int = 1) -> dict[str, Any]:
    draw = np.random.default_rng(0).standard_normal
    return {i.name: draw(i.concrete(batch)).astype(i.dtype) for i in model.inputs}


def run(made: Split, inputs: dict[str, Any]) -> dict[str, Any]:
    """The segments' outputs; each gets what it names, and no more."""
    values = dict(inputs)
    for segment in made.segments:
        values |= segment.graph.run({i.name: values[i.name] for i in segment.graph.inputs})
    return {name: values[value] for name, value in made.outputs.items()}


def check(
    model: Model, starts: dict[str, str], batch: int = 1, graph: Graph | None = None
) -> Split:
    graph = graph or export(model)
    made = split(graph, starts)
    inputs = samples(model, batch)
    whole, parts = graph.run(inputs), run(made, inputs)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert np.array_equal(value, parts[name]), name
        assert np.abs(value).max() > 0
    return made


def test_towers_are_cut_at_each_exchange():
    made = check(towers(), {})
    assert [(s.name, s.step) for s in made.segments] == [
        (f"{stream}_{step}", step) for step in range(4) for stream in ("video", "audio")
    ]
    assert made.repeated == 0


@pytest.mark.parametrize(("precision", "target"), [("int8", "cpu"), ("fp16", "rtx-4090")])
def test_as_lowered_for_a_target(precision, target):
    fields = {"model": "reference/two_tower", "arguments": {**TOWERS, "depth": 1}, "samples": 4}
    random_ones = {"random_weights": True, "random_calibration": True}
    work = Work(Recipe.check({**fields, **random_ones, "precision": precision}, "test"))
    graph = work.lower(targets.load(target), work.quantize() if work.recipe.scheme else None)
    made = check(work.model, {}, graph=graph)
    assert len(made.segments) == 4
    sent = {i.dtype for s in made.segments if s.step for i in s.graph.inputs}
    assert sent == {"float32" if precision == "int8" else "float16"}


def test_segments_of_one_step_take_nothing_from_each_other():
    made = split(export(towers()), {})
    for one, other in itertools.permutations(made.segments, 2):
        if one.step <= other.step:
            assert not {i.name for i in one.graph.inputs} & set(other.graph.outputs)


def test_in_float64_with_any_batch():
    model = towers()
    model.module.double()
    inputs = tuple(Input(i.name, i.shape, "float64") for i in model.inputs)
    wide = Model(model.module, inputs, model.outputs, "wide").with_batch("dynamic")
    made = check(wide, {}, batch=3)
    for segment in made.segments:
        assert all(isinstance(spec.shape[0], Dim) for spec in segment.graph.inputs)
    # The size of the batch is read where it is, not from the other tower's input.
    assert [i.name for i in made.segments[1].graph.inputs] == ["audio"]


def test_branches_that_start_in_modules():
    model = crossvit()
    made = check(model, dict(model.streams))
    assert {segment.stream for segment in made.segments} == {"branch0", "branch1"}
    # Two blocks are two exchanges; the mean of both branches' logits is one way, and the last.
    assert [s.name for s in made.segments if s.step == 3] == ["branch0_3"]
    assert made.repeated == 0


def test_ltx2(tmp_path: Path):
    pytest.importorskip("diffusers")
    from small import CLIP, LTX2

    (tmp_path / "config.json").write_text(json.dumps(LTX2))
    model = random(f"diffusers/{tmp_path}", **CLIP)
    made = check(model, dict(model.streams))
    assert [s.name for s in made.segments] == [
        f"{stream}_{step}"
        for step in range(LTX2["num_layers"] + 1)
        for stream in ("video", "audio")
    ]
    assert made.repeated < 0.01 * sum(p.nbytes for p in model.module.parameters())


class Net(torch.nn.Module):
    """Two streams that meet as ``meet`` says, and a condition that both use."""

    def __init__(self, meet):
        super().__init__()
        self.meet = meet
        self.condition = torch.nn.Linear(4, 4)
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x, y, t):
        scale = self.condition(t)[:, None]
        x, y = self.first(x) * scale, self.second(y) * scale
        return self.meet(x, y, scale)


def net(meet) -> Model:
    torch.manual_seed(0)
    inputs = (Input("x", (1, 6, 4)), Input("y", (1, 3, 4)), Input("t", (1, 4)))
    return Model(Net(meet), inputs, ("a", "b"), "net")


def attend(q, read):
    return torch.nn.functional.scaled_dot_product_attention(q, read, read)


def test_what_belongs_to_no_stream_is_in_each_that_uses_it_once():
    def meet(x, y, scale):
        return (x + attend(x, y)) * scale, (y + attend(y, x)) * scale

    made = check(net(meet), {})
    assert [len(s.graph.inputs) for s in made.segments][:2] == [2, 2]
    assert made.repeated == 4 * (16 + 4)
    assert all("t" not in {i.name for i in s.graph.inputs} for s in made.segments[2:])


def test_what_cannot_be_sent_is_computed_again():
    def meet(x, y, scale):
        high = y > 0  # boolean; split gives a tuple; -1 has no axis
        left, _ = torch.split(y, 2, -1)
        x = torch.where(high.any(1, keepdim=True), x, -x) + left.repeat(1, 2, 2) * y.mean()
        return x, y + attend(y, x)

    check(net(meet), {})


def test_what_is_computed_again_finds_what_it_needs():
    """``later`` is y's own at its last step only; x's mask, needed before, is made of it too."""

    def meet(x, y, scale):
        later = scale.exp()
        x = x + attend(x, y)
        y = torch.where((x > later).any(1, keepdim=True), y, -y)
        x = x + attend(x, y)
        return x, (y + attend(y, x)) * later

    check(net(meet), {})


def test_streams_that_take_turns():
    def meet(x, y, scale):
        x = x + attend(x, y)
        y = y + attend(y, x)
        return x + attend(x, y), y

    made = check(net(meet), {})
    assert [s.name for s in made.segments] == ["x_0", "y_0", "x_1", "y_1", "x_2"]
    assert [s.step for s in made.segments] == [0, 0, 1, 2, 3]


class Scaled(torch.nn.Module):
    """A layer that prepares its input, as quantization does, and hands on what it prepared."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        x = x / 2
        return self.linear(x), x


class Image(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Scaled(), torch.nn.Linear(4, 4)

    def forward(self, x):
        a, prepared = self.first(x)
        b = self.second(prepared)
        return a + attend(a, b), b + attend(b, a)


def test_a_stream_starts_at_weights():
    """What the first module does to the input before is no part of its stream alone."""
    torch.manual_seed(0)
    model = Model(Image(), (Input("x", (1, 6, 4)),), ("a", "b"), "image")
    made = check(model, {"one": "first", "two": "second"})
    assert [s.step for s in made.segments] == [0, 0, 1, 1]


def test_one_way_is_split_if_asked_for_by_name_only():
    def meet(x, y, scale):
        return x + attend(x, y), y

    with pytest.raises(EdgekitError, match="x reads y") as caught:
        split(export(net(meet)), {})
    assert "--stream-start" in caught.value.fix
    made = check(net(meet), {"one": "x", "two": "y"})
    assert [s.name for s in made.segments] == ["one_0", "two_0", "one_1"]


def test_no_two_streams_is_said():
    with pytest.raises(EdgekitError, match="none reads another"):
        split(export(net(lambda x, y, scale: (x, y))), {})
    with pytest.raises(EdgekitError, match="need only the stream one"):
        split(export(net(lambda x, y, scale: (x, x))), {"one": "x", "two": "y"})
    with pytest.raises(EdgekitError, match="'z' matches no input") as caught:
        split(export(net(lambda x, y, scale: (x, y))), {"one": "x", "two": "z"})
    assert "x, y, t" in caught.value.why

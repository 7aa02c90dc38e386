"""Schedules, projections, kept zeros, and samples with their answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import progress
from edgekit.compress.distillation import schedule, sparsity
from edgekit.compress.distillation.material import Material
from edgekit.compress.distillation.parallel import Place, share
from edgekit.compress.distillation.projections import Projections, aligned
from edgekit.data import open_data
from edgekit.errors import EdgekitError
from edgekit.model import Input

CPU = torch.device("cpu")


@pytest.mark.parametrize(("size", "count"), [(4, 10), (7, 3), (5, 5), (1, 2)])
def test_every_sample_comes_once_before_any_comes_again(size, count):
    steps = [schedule.samples_of(step, size, count, 1) for step in range(count * 2)]
    assert all(len(step) == size for step in steps)
    flat = [index for step in steps for index in step]
    for start in range(0, len(flat), count):
        assert sorted(flat[start : start + count]) == list(range(count))


def test_the_order_is_the_seeds():
    first, again, other = (schedule.samples_of(3, 8, 20, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_the_rate_rises_and_falls(steps):
    factors = [schedule.factor(step, steps) for step in range(steps)]
    top = factors.index(max(factors))
    assert all(0 < each <= 1 for each in factors)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert max(factors) == 1


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_shares_are_all_of_a_batch_and_never_empty(world):
    indices = list(range(5))
    parts = [share(indices, Place(rank, world, CPU)) for rank in range(world)]
    assert [index for part in parts for index in part] == indices
    assert all(parts)


def test_features_of_other_widths_are_projected():
    mine = [torch.randn(2, 5, 4), torch.randn(2, 4, 3, 3), torch.randn(2, 6)]
    theirs = [torch.randn(2, 5, 6), torch.randn(2, 8, 3, 3), torch.randn(2, 6)]
    maps = Projections(aligned(mine, theirs, "a and b"))
    assert [each.shape for each in maps(mine)] == [each.shape for each in theirs]
    assert maps(mine)[2] is mine[2]
    wanted = maps.maps[1](mine[1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.equal(maps(mine)[1], wanted)


def test_joined_streams_are_compared_with_joined_streams():
    text, image = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    ((mine, theirs),) = aligned([torch.cat([text, image], 1)], [text, image], "a and b")
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "shapes", [((2, 5, 4), (2, 6, 4)), ((2, 5, 4), (2, 5, 4, 1)), ((2,), (2,))]
)
def test_features_that_differ_in_more_cannot_be_compared(shapes):
    mine, theirs = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(EdgekitError, match=r"blocks\.0 and blocks\.3"):
        aligned([mine], [theirs], "blocks.0 and blocks.3")


def sparse(shape, axis):
    weight = torch.randn(shape).movedim(axis, -1).contiguous()
    groups = weight.view(-1, 4)
    groups[:, :2] = 0.0
    return weight.movedim(-1, axis)


def test_only_weights_that_are_sparse_all_over_are_kept():
    module = nn.Module()
    module.linear = nn.Parameter(sparse((8, 16), 1))
    module.conv = nn.Parameter(sparse((8, 16, 3, 3), 1))
    module.dense = nn.Parameter(torch.randn(8, 16))
    module.untrained = nn.Parameter(torch.zeros(8, 16))
    module.bias = nn.Parameter(torch.zeros(16))
    almost = sparse((8, 16), 1)
    almost[0, :4] = 1.0
    module.almost = nn.Parameter(almost)
    kept = sparsity.masks(module)
    assert set(kept) == {module.linear, module.conv}
    module.linear.grad = torch.ones(8, 16)
    sparsity.keep(kept)
    assert torch.equal(module.linear.grad == 0, module.linear == 0)


def counted(room, each=lambda x: {"outputs": [x * 2], "said": "so"}):
    data = open_data(
        {"x": np.arange(20, dtype=np.float32).reshape(10, 2), "labels": np.arange(10)},
        (Input("x", (1, 2)),), None,
    )  # fmt: skip
    asked = []

    def ask(inputs):
        asked.append(len(inputs["x"]))
        return each(inputs["x"])

    return Material(data, ask, CPU, room), asked


@pytest.mark.parametrize("room", [0, 100, 10_000], ids=["nothing", "answers", "all"])
def test_answers_are_the_same_kept_or_asked_anew(room):
    material, asked = counted(room)
    material.prepare([1, 3, 5, 7, 9] * 2, size=2)
    before = len(asked)
    batch, told = material.get([9, 1, 9])
    assert batch.inputs["x"].tolist() == [[18, 19], [2, 3], [18, 19]]
    assert told["outputs"][0].tolist() == [[36, 38], [4, 6], [36, 38]]
    assert told["said"] == "so"
    assert batch.labels.tolist() == [9, 1, 9]
    assert len(asked) == before + (room == 0)


def test_samples_are_kept_where_there_is_nothing_to_ask():
    material, _ = counted(10_000, lambda x: {})
    material.prepare(list(range(10)) * 2, size=3)
    batch, told = material.get([8, 0])
    assert batch.inputs["x"].tolist() == [[16, 17], [0, 1]]
    assert told == {}


def test_what_is_used_once_is_not_kept():
    material, asked = counted(10_000)
    material.prepare(list(range(10)), size=2)
    assert asked == []


def test_what_belongs_to_no_sample_is_not_kept():
    """A table as long as the first batch is no entry a sample."""
    material, asked = counted(10_000, lambda x: [x, torch.zeros(2)])
    material.prepare(list(range(10)) * 3, size=2)
    asked.clear()
    material.get([0])
    assert asked == [1]


def test_a_bar_is_lines_where_there_is_no_terminal(capsys, monkeypatch):
    with progress.bar("Distilling", 20) as advance:
        advance("loss 1")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_enabled", True)
    with progress.bar("Distilling", 20, done=9) as advance:
        for _ in range(11):
            advance("loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("Distilling: 10 of 20, loss 0.5")
    assert lines[-1] == "Distilling: 20 of 20, loss 0.5, 0 s left"

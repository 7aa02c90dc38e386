"""Blocks: found in models of any library, and matched by what they stand for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgekit.compress import structure
from edgekit.compress.distillation.blocks import Pair, blocks, pairs


class Block(nn.Module):
    """A layer with layers of its own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleList([Inner(), Inner()])

    def forward(self, x):
        return x + 1


class Inner(nn.Module):
    """A layer in a layer."""


def net(first=4, second=0):
    made = nn.Module()
    made.stem = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    made.blocks = nn.Sequential(*(Block() for _ in range(first)))
    if second:
        made.late = nn.ModuleList(Block() for _ in range(second))
    return made


def student_of(teacher, *dropped):
    made = copy.deepcopy(teacher)
    structure.mark(made)
    for path in sorted(dropped, reverse=True):
        name, _, place = path.partition(".")
        del getattr(made, name)[int(place)]
    return made


def runs(student, teacher, by_origin=True, chained=True):
    every = [path for held in blocks(teacher).values() for path in held]
    return pairs(student, teacher, by_origin, every if chained else [])


def test_the_outermost_lists_of_a_librarys_own_layers_are_found():
    assert blocks(net(2, 1)) == {"blocks": ["blocks.0", "blocks.1"], "late": ["late.0"]}
    stages = nn.Sequential(nn.Sequential(Block(), nn.Identity(), Block()), nn.Linear(1, 1))
    assert blocks(stages) == {"0": ["0.0", "0.2"]}
    assert blocks(nn.Sequential(nn.Linear(1, 1))) == {}


def test_timms_blocks(digits_model):
    from edgekit import families
    from edgekit.families import Options

    module = families.load(f"timm/{digits_model}", Options()).module
    assert blocks(module) == {"blocks": ["blocks.0", "blocks.1"]}


def test_a_dropped_blocks_work_is_done_by_the_one_before_it():
    teacher = net(6)
    found = runs(student_of(teacher, "blocks.0", "blocks.2", "blocks.3"), teacher)
    assert found == [
        Pair("blocks.0", "blocks.0", "blocks.3", "blocks.1"),
        Pair("blocks.1", "blocks.4", "blocks.4", "blocks.4"),
        Pair("blocks.2", "blocks.5", "blocks.5", "blocks.5"),
    ]


def test_without_origins_the_blocks_are_divided_evenly():
    found = runs(net(2), net(6), by_origin=False)
    assert [(p.first, p.last) for p in found] == [
        ("blocks.0", "blocks.2"),
        ("blocks.3", "blocks.5"),
    ]
    more = [pair.last for pair in runs(net(6), net(3), by_origin=False)]
    assert more == sorted(more)
    assert set(more) == {"blocks.0", "blocks.1", "blocks.2"}


def test_moved_blocks_have_no_order_to_follow():
    teacher = net(3)
    student = student_of(teacher)
    student.blocks[0], student.blocks[2] = student.blocks[2], student.blocks[0]
    assert [p.last for p in runs(student, teacher)] == ["blocks.0", "blocks.1", "blocks.2"]


def test_blocks_that_are_not_chained_stand_for_themselves_alone():
    teacher = net(4)
    found = runs(student_of(teacher, "blocks.1", "blocks.2"), teacher, chained=False)
    assert [(p.first, p.last, p.own) for p in found] == [
        ("blocks.0",) * 3,
        ("blocks.3",) * 3,
    ]


def test_lists_of_one_name_are_matched_on_their_own():
    teacher = net(4, 3)
    found = runs(student_of(teacher, "blocks.3", "late.0"), teacher)
    assert [(p.student, p.first, p.last) for p in found] == [
        ("blocks.0", "blocks.0", "blocks.0"),
        ("blocks.1", "blocks.1", "blocks.1"),
        ("blocks.2", "blocks.2", "blocks.3"),
        ("late.0", "late.0", "late.1"),
        ("late.1", "late.2", "late.2"),
    ]


def test_a_list_that_only_one_has_is_matched_with_all():
    found = runs(net(4), net(2, 2), by_origin=False)
    assert [p.last for p in found] == ["blocks.0", "blocks.1", "late.0", "late.1"]


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.Sequential(nn.ReLU())])
def test_no_blocks_no_pairs(module):
    assert runs(module, net(2)) == []
    assert torch.is_tensor(module(torch.zeros(1, 2)))

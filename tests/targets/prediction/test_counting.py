"""Counting: what a graph computes and moves, fused as runtimes fuse it."""

from __future__ import annotations

import pytest
import torch

from edgekit import families
from edgekit.compress.measure import operations
from edgekit.errors import EdgekitError
from edgekit.model import Dim, Input, Model, State
from edgekit.targets.prediction.counting import count, groups
from edgekit.targets.prediction.groups import batched, from_rows, merged, to_rows
from edgekit.targets.prediction.shapes import exported


class Block(torch.nn.Module):
    """Convolution, norm, activation and shortcut; then a linear."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8 * 16, 5)

    def forward(self, x):
        x = x + torch.relu(self.norm(self.conv(x)))
        return self.head(x.flatten(1))


def counted(module, *shape, **more):
    model = Model(module.eval(), (Input("x", shape),), ("y",), "here")
    return count(exported(model, None), "here", **more)


def test_a_convolution_takes_in_what_follows_it():
    conv, head = counted(Block(), 2, 8, 4, 4).groups
    assert (conv.kind, conv.module, conv.site, conv.steps) == ("conv", "conv", "conv", 3)
    assert conv.flops == 2 * (2 * 4 * 4) * 8 * (8 * 9)
    assert (conv.rows, conv.columns, conv.depth) == (32, 8, 72)
    assert conv.reads == conv.writes == 2 * 8 * 16  # the shortcut is what it reads anyway
    assert conv.integer_writes == conv.writes  # only the linear reads them
    assert conv.weights == 8 * 8 * 9
    assert (head.kind, head.weights, head.writes) == ("product", 5 * 128, 10)


def test_excluded_modules_have_no_site_and_hand_no_integers():
    conv, head = counted(Block(), 2, 8, 4, 4, exclude=("head",)).groups
    assert (conv.site, head.site) == ("conv", "")
    assert conv.integer_writes == 0
    with pytest.raises(EdgekitError, match="matches no"):
        counted(Block(), 2, 8, 4, 4, exclude=("nothing",))


class Attention(torch.nn.Module):
    def __init__(self, whole):
        super().__init__()
        self.whole = whole

    def forward(self, x):
        q = x.reshape(2, 6, 3, 4).transpose(1, 2)
        if self.whole:
            y = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        else:
            y = torch.softmax(q @ q.transpose(-2, -1) * 0.5, -1) @ q
        return y.transpose(1, 2).reshape(2, 6, 12)


def test_attention_written_out_is_attention():
    whole, written = (
        [g for g in counted(Attention(kind), 2, 6, 12).groups if g.kind == "attention"]
        for kind in (True, False)
    )
    assert len(whole) == len(written) == 1
    assert whole[0].flops == written[0].flops == 2 * 2 * 3 * 6 * 6 * (4 + 4)
    assert whole[0].scores == written[0].scores == 2 * 3 * 6 * 6


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "crossvit_tiny_240"])
def test_operations_are_those_that_torch_counts(name):
    model = families.outline(f"timm/{name}", families.Options())
    found = groups(exported(model, 1))
    computing = ("conv", "product", "depthwise", "attention")
    flops = sum(group.flops for group in found if group.kind in computing)
    assert flops == pytest.approx(2 * operations(model), rel=1e-3)
    held = sum(group.weights for group in found)
    assert held == pytest.approx(sum(p.numel() for p in model.module.parameters()), rel=0.03)


def test_weights_change_nothing():
    options = families.Options(random_weights=True)
    whole = families.load("timm/test_vit", options)
    outline = families.outline("timm/test_vit", options)
    assert groups(exported(whole, 1)) == groups(exported(outline, 1))


def test_a_batch_is_as_many_samples():
    one, four = (counted(Block(), n, 8, 4, 4).groups for n in (1, 4))
    assert [batched(group, 4) for group in one] == list(four)


def test_a_recurrence_is_one_group():
    model = families.outline("reference/lmu", families.Options())
    scans = [g for g in groups(exported(model, 1)) if g.kind == "scan"]
    assert [g.operator for g in scans] == ["lmu"]
    assert scans[0].depth == model.inputs[0].concrete()[1]


def test_groups_survive_storing():
    found = merged(counted(Block(), 1, 8, 4, 4).groups)
    assert from_rows(to_rows(found)) == found
    twice = merged([*found, *found])
    assert [group.count for group in twice] == [2] * len(found)


def test_what_is_alive_is_what_was_written_and_is_still_to_be_read():
    class Chain(torch.nn.Module):
        def forward(self, x):
            kept = x.softmax(-1)
            y = (kept + 1).cumsum(-1).cumsum(-1)
            return y.amax(-1) + kept.amax(-1)

    held = counted(Chain(), 1, 10).held
    assert max(held) >= 30  # the softmax, and two that follow each other
    assert max(held) < 50


def test_a_stream_is_refused():
    model = Model(
        Block(), (Input("x", (1, 8, 4, 4)),), ("y",), "here", states=(State("s", (1, 2)),)
    )
    with pytest.raises(EdgekitError, match="as a stream"):
        exported(model, 1)


def test_sizes_that_vary_are_as_usual():
    length = Dim("length", 1, 7, 64)
    model = Model(torch.nn.Linear(3, 3).eval(), (Input("input", (1, length, 3)),), ("y",), "here")
    (found,) = groups(exported(model, 2))
    assert found.rows == 2 * 7

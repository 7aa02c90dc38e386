"""Watch: what is seen is what the modules compute, and nothing stays behind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit.compress.distillation.teacher import call_of
from edgekit.compress.distillation.watch import Watch, floats


class Attention(nn.Module):
    """Over two heads, fused or written out."""

    def __init__(self, fused):
        super().__init__()
        self.qkv, self.fused = nn.Linear(8, 24), fused

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, value=v)
        else:
            mixed = F.softmax(q @ k.transpose(2, 3) / 2, dim=-1) @ v
        return mixed.transpose(1, 2).flatten(2)


class Block(nn.Module):
    """Attention, and a second stream."""

    def __init__(self, fused):
        super().__init__()
        self.attn = Attention(fused)

    def forward(self, x, *, other):
        return x + self.attn(x), {"other": other * 2}


class Net(nn.Module):
    """Two blocks."""

    def __init__(self, fused=True):
        super().__init__()
        self.blocks = nn.ModuleList([Block(fused), Block(fused)])

    def forward(self, x):
        other = x[:, :1]
        for block in self.blocks:
            x, held = block(x, other=other)
            other = held["other"]
        return x, x.argmax(2)


X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
PATHS = ["blocks.0", "blocks.1"]


def test_features_and_arguments_of_blocks():
    net = Net()
    seen = Watch(net, call_of(net), features=PATHS, calls=["blocks.1"])({"x": X})
    assert torch.equal(seen["outputs"][0], net(X)[0])
    assert [tuple(each.shape) for each in seen["features"]["blocks.0"]] == [(3, 5, 8), (3, 1, 8)]
    given, named = seen["calls"]["blocks.1"]
    assert given[0] is seen["features"]["blocks.0"][0]
    assert torch.equal(named["other"], X[:, :1] * 2)
    assert torch.equal(seen["features"]["blocks.1"][0], seen["outputs"][0])


@pytest.mark.parametrize("fused", [True, False])
def test_attention_of_each_block(fused):
    net = Net(fused)
    seen = Watch(net, call_of(net), attention=PATHS)({"x": X})
    (first,), (second,) = (seen["attention"][path] for path in PATHS)
    q, k, v = net.blocks[0].attn.qkv(X).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    wanted = (q, k, v) if fused else ((q @ k.transpose(2, 3) / 2).softmax(3),)
    assert all(torch.allclose(a, b) for a, b in zip(first, wanted, strict=True))
    assert not torch.allclose(first[0], second[0])
    assert torch.equal(seen["mixing"]["blocks.0"][0], net.blocks[0].attn(X))


def test_gradients_flow_through_what_is_seen():
    net = Net()
    seen = Watch(net, call_of(net), attention=PATHS[:1])({"x": X})
    sum(each.sum() for each in seen["attention"]["blocks.0"][0]).backward()
    assert net.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert net.blocks[1].attn.qkv.weight.grad is None


def test_two_watches_do_not_see_each_others_runs_and_leave_nothing():
    net = Net()
    first = Watch(net, call_of(net), features=PATHS[:1])
    second = Watch(net, call_of(net), attention=PATHS)
    assert "attention" not in first({"x": X})
    assert "features" not in second({"x": X})
    first.close()
    second.close()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_an_error_inside_does_not_confuse_the_next_run():
    net = Net()
    watch = Watch(net, call_of(net), attention=PATHS)
    with pytest.raises(RuntimeError):
        watch({"x": X[:, :, :7]})
    assert watch({"x": X})["attention"].keys() == set(PATHS)


def test_floats_of_anything():
    x, i = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    assert len(floats((x, [i, x], {"a": x, "b": None}, 3))) == 3

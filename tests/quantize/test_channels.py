"""Channels followed from what gives them to what reads them; rescaling changes no function."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit.edit import Editor, quiet_copies
from edgekit.model import Input, Model
from edgekit.quantize.channels import find_producers, rescale
from edgekit.quantize.follow import follow

C = 8


class Attention(nn.Module):
    """A fused qkv, as timm has it."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(C), nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = (
            self.qkv(self.norm(x)).reshape(b, n, 3, 2, C // 2).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, C)
        return x + self.proj(mixed)


class Grouped(nn.Module):
    """Separate projections, attention spelt out, values shared by pairs of heads."""

    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(C)
        self.q, self.k, self.v = nn.Linear(C, C), nn.Linear(C, C // 2), nn.Linear(C, C // 2)
        self.proj = nn.Linear(C, C)

    def forward(self, x):
        b, n, _ = x.shape
        x = self.norm(x)
        q = self.q(x[:, :1]).reshape(b, 1, 4, 2).transpose(1, 2)
        k, v = (
            layer(x)
            .reshape(b, n, 2, 1, 2)
            .expand(b, n, 2, 2, 2)
            .reshape(b, n, 4, 2)
            .transpose(1, 2)
            for layer in (self.k, self.v)
        )
        mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(b, 1, C))


class Gated(nn.Module):
    """An RMSNorm spelt out and a fused gated product."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(C) + 0.5)
        self.up, self.down = nn.Linear(C, 12), nn.Linear(6, C)

    def forward(self, x):
        normal = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        gate, up = self.up(self.weight * normal).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Windows(nn.Module):
    """A norm read through a shift and windows, as in Swin."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(C), nn.Linear(C, 5)

    def forward(self, x):
        x = self.norm(x).reshape(-1, 3, 2, C).roll((1, 1), (1, 2))
        windows = x.reshape(-1, 3, 1, 2, C).permute(0, 3, 1, 2, 4).reshape(-1, 3, C)
        return self.linear(windows.mean(1))


class Convolutions(nn.Module):
    """Convolutions of every kind between operators that hand a positive scale on."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv1d(C, C, 3, padding=1), nn.BatchNorm1d(C)
        self.depthwise = nn.Conv1d(C, C, 3, padding=1, groups=C)
        self.grouped = nn.Conv1d(C, C, 1, groups=2, bias=False)
        self.last = nn.Linear(C, 3)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x.transpose(1, 2))))
        x = F.leaky_relu(self.depthwise(x), 0.1)
        return self.last(self.grouped(x).mean(2))


class Fixed(nn.Module):
    """Everything that must stay: tied weights, a residual sum, a nonlinear operator."""

    def __init__(self):
        super().__init__()
        self.norm, self.tied, self.gelu = nn.LayerNorm(C), nn.Linear(C, C), nn.Linear(C, C)
        self.read, self.summed = nn.Linear(C, C), nn.LayerNorm(C)

    def forward(self, x):
        x = self.tied(F.relu(self.tied(self.norm(x))))
        x = self.summed(self.read(F.gelu(self.gelu(x))))
        return x + self.read(x)


#: model -> by producer how many channels are free, of those that have some.
FREE = {
    Attention: {"norm": 8, "qkv": 8},
    Grouped: {"norm": 8, "v": 4},
    Gated: {"": 8, "up": 6},
    Windows: {"norm": 8},
    Convolutions: {"norm": 8, "depthwise": 8, "grouped": 8},
    Fixed: {},
}


@cache
def export(module):
    torch.manual_seed(0)
    model = Model(module().eval(), (Input("x", (1, 6, C)),), ("y",), "m")
    return model.with_batch("dynamic").export()


def in_double(graph, x):
    with quiet_copies():
        module = copy.deepcopy(graph.exported.module(check_guards=False))
    return module.double()(x=x)


def reaches(editor):
    for producer in find_producers(editor):
        reach = follow(editor, producer)
        if reach.readers and reach.free.any():
            yield producer, reach


def owner(editor, producer):
    return editor.tensor_name(producer.constants[0]).rpartition(".")[0]


@pytest.mark.parametrize("module", FREE)
def test_only_what_can_be_rescaled_is_free(module):
    editor = Editor(export(module))
    free = {owner(editor, p): int(r.free.sum()) for p, r in reaches(editor)}
    assert free == FREE[module]


def test_the_values_of_a_fused_qkv_reach_the_projection_in_order():
    editor = Editor(export(Attention))
    (reach,) = [r for p, r in reaches(editor) if owner(editor, p) == "qkv"]
    assert reach.free.nonzero().flatten().tolist() == list(range(2 * C, 3 * C))
    assert reach.readers[0].channels.tolist() == list(range(2 * C, 3 * C))


def test_shared_values_reach_each_head_that_reads_them():
    editor = Editor(export(Grouped))
    (reach,) = [r for p, r in reaches(editor) if owner(editor, p) == "v"]
    assert reach.readers[0].channels.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


@pytest.mark.parametrize("module", [m for m in FREE if FREE[m]])
def test_rescaling_keeps_the_function(module):
    graph = export(module)
    editor = Editor(graph)
    random = torch.Generator().manual_seed(1)
    count = 0
    for producer, reach in list(reaches(editor)):
        exponents = torch.randint(-5, 6, (producer.count,), generator=random)
        factors = torch.where(reach.free, 2.0**exponents, 1.0).double()
        rescale(editor, producer, reach, factors)
        count += int((factors != 1).sum())
    assert count >= 6
    x = torch.randn(3, 6, C, dtype=torch.float64, generator=random)
    assert (in_double(graph, x) - in_double(editor.done(), x)).abs().max() < 1e-10

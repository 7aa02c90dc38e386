"""Affine: what layers in evaluation mode do to their input, as values that add up and scale.

A convolution is a weight and a bias; a linear layer is one without a kernel. A batch norm scales
and shifts channels. All in float64: folding rounds once, at the end.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Scaled:
    """Channels scaled and shifted: ``scale * x + shift``.

    Attributes:
        scale, shift: (channels,), or one number as (1,).
        rank: axes after the channels; None is any.
    """

    scale: Tensor
    shift: Tensor
    rank: int | None = None


@dataclass(frozen=True)
class Convolved:
    """A convolution, or with ``rank`` 0 a linear layer.

    Attributes:
        weight: (outputs, inputs / groups, *kernel)
        bias: (outputs,)
        stride, padding, dilation: one number an axis of the kernel.
    """

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def rank(self) -> int:
        """Axes of the kernel."""
        return self.weight.dim() - 2

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel's size."""
        return tuple(self.weight.shape[2:])


Affine = Scaled | Convolved
#: The input itself.
INPUT = Scaled(torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))


def of_layer(layer: Any) -> Convolved | None:
    """A linear layer or convolution of torch; None where it is none, or pads otherwise than with
    as many zeros on both sides.
    """
    if type(layer) is nn.Linear:
        none: tuple[int, ...] = ()
        return Convolved(layer.weight.double(), _bias(layer), none, none, none, 1)
    if type(layer) not in LAYERS or layer.padding_mode != "zeros":
        return None
    padding = layer.padding
    if isinstance(padding, str):
        spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if padding == "same" and any(span % 2 for span in spans):
            return None
        padding = tuple(span // 2 if padding == "same" else 0 for span in spans)
    return Convolved(
        layer.weight.double(), _bias(layer), layer.stride, padding, layer.dilation, layer.groups
    )


def of_norm(
    mean: Tensor | None, variance: Tensor | None, gain: Tensor | None, shift: Tensor | None,
    epsilon: float, rank: int | None,
) -> Scaled | None:  # fmt: skip
    """A batch norm in evaluation mode; None where it has no statistics."""
    if mean is None or variance is None:
        return None
    scale = (variance.double() + epsilon).rsqrt()
    scale = scale if gain is None else scale * gain.double()
    moved = -mean.double() * scale
    return Scaled(scale, moved if shift is None else moved + shift.double(), rank)


def scaled(value: Affine, by: Scaled) -> Affine | None:
    """``by`` after ``value``."""
    if isinstance(value, Scaled):
        if None not in (value.rank, by.rank) and value.rank != by.rank:
            return None
        rank = value.rank if by.rank is None else by.rank
        return Scaled(value.scale * by.scale, value.shift * by.scale + by.shift, rank)
    if by.rank not in (None, value.rank) or len(by.scale) not in (1, len(value.bias)):
        return None
    weight = value.weight * by.scale.reshape(-1, *[1] * (value.weight.dim() - 1))
    return dataclasses.replace(value, weight=weight, bias=value.bias * by.scale + by.shift)


def after(layer: Convolved, value: Scaled) -> Convolved | None:
    """A layer after a scaling; None where zeros around the image would have been shifted too."""
    if value.rank not in (None, layer.rank) or (any(layer.padding) and bool(value.shift.any())):
        return None
    inputs = layer.weight.shape[1] * layer.groups
    if len(value.scale) not in (1, inputs):
        return None
    # (outputs, inputs / groups): an output's inputs are those of its group.
    scale, shift = (_grouped(v.expand(inputs), layer) for v in (value.scale, value.shift))
    weight = layer.weight * scale.reshape(*scale.shape, *[1] * layer.rank)
    moved = (layer.weight.flatten(2).sum(2) if layer.rank else layer.weight) * shift
    return dataclasses.replace(layer, weight=weight, bias=layer.bias + moved.sum(1))


def plus(first: Affine, second: Affine) -> Affine | None:
    """The sum of what two do to one input; None where it is no single layer."""
    if isinstance(first, Scaled) and isinstance(second, Scaled):
        if None not in (first.rank, second.rank) and first.rank != second.rank:
            return None
        rank = first.rank if second.rank is None else second.rank
        return Scaled(first.scale + second.scale, first.shift + second.shift, rank)
    if isinstance(first, Scaled):
        first, second = second, first
    if isinstance(first, Scaled):
        return None
    other = _as_layer(second, first) if isinstance(second, Scaled) else second
    if other is None or other.rank != first.rank or len(other.bias) != len(first.bias):
        return None
    return _sum(first, other)


def module(value: Convolved, dtype: torch.dtype) -> nn.Module:
    """A plain layer of torch."""
    outputs, inputs = len(value.bias), value.weight.shape[1] * value.groups
    made: nn.Module
    if value.rank == 0:
        made = nn.Linear(inputs, outputs)
    else:
        kind: type[nn.Conv1d] | type[nn.Conv2d] = nn.Conv1d if value.rank == 1 else nn.Conv2d
        made = kind(
            inputs,
            outputs,
            value.kernel,  # type: ignore[arg-type]
            value.stride,  # type: ignore[arg-type]
            value.padding,  # type: ignore[arg-type]
            value.dilation,  # type: ignore[arg-type]
            value.groups,
        )
    made.weight = nn.Parameter(value.weight.to(dtype))
    made.bias = nn.Parameter(value.bias.to(dtype))
    return made.eval()


def _bias(layer: Any) -> Tensor:
    if layer.bias is None:
        return torch.zeros(len(layer.weight), dtype=torch.float64)
    bias: Tensor = layer.bias.double()
    return bias


def _grouped(values: Tensor, layer: Convolved) -> Tensor:
    """(inputs,) -> (outputs, inputs / groups)"""
    per_group = len(layer.bias) // layer.groups
    return values.reshape(layer.groups, -1).repeat_interleave(per_group, 0)


def _as_layer(value: Scaled, like: Convolved) -> Convolved | None:
    """A scaling as a layer that gives the same shape as ``like``, if both take the same."""
    channels = len(like.bias)
    inputs = like.weight.shape[1] * like.groups
    fits = inputs == channels and value.rank in (None, like.rank)
    if not fits or len(value.scale) not in (1, channels) or any(s != 1 for s in like.stride):
        return None
    ones = (1,) * like.rank
    scale, shift = value.scale.expand(channels), value.shift.expand(channels)
    if like.rank == 0:
        return Convolved(torch.diag(scale), shift, (), (), (), 1)
    weight = scale.reshape(channels, 1, *ones)
    return Convolved(weight, shift, ones, (0,) * like.rank, ones, channels)


def _sum(first: Convolved, second: Convolved) -> Convolved | None:
    if first.stride != second.stride:
        return None
    padding = tuple(map(max, first.padding, second.padding))
    groups = math.gcd(first.groups, second.groups)
    pair = [_widened(_regrouped(_undilated(one), groups), padding) for one in (first, second)]
    one, two = pair
    if one is None or two is None or one.weight.shape != two.weight.shape:
        return None
    return dataclasses.replace(one, weight=one.weight + two.weight, bias=one.bias + two.bias)


def _undilated(value: Convolved) -> Convolved:
    """The same with zeros between the kernel's values."""
    if all(step == 1 for step in value.dilation):
        return value
    size = [d * (k - 1) + 1 for d, k in zip(value.dilation, value.kernel, strict=True)]
    weight = value.weight.new_zeros(*value.weight.shape[:2], *size)
    places: Any = (..., *(slice(None, None, step) for step in value.dilation))
    weight[places] = value.weight
    return dataclasses.replace(value, weight=weight, dilation=(1,) * value.rank)


def _regrouped(value: Convolved, groups: int) -> Convolved:
    """The same in fewer groups, of which the old number is a multiple."""
    if groups == value.groups:
        return value
    outputs, inputs = value.weight.shape[:2]
    merged = value.groups // groups
    weight = value.weight.new_zeros(outputs, inputs * merged, *value.kernel)
    per_group = outputs // value.groups
    for group in range(value.groups):
        rows = slice(group * per_group, (group + 1) * per_group)
        start = (group % merged) * inputs
        weight[rows, start : start + inputs] = value.weight[rows]
    return dataclasses.replace(value, weight=weight, groups=groups)


def _widened(value: Convolved, padding: tuple[int, ...]) -> Convolved | None:
    """The same with more padding, and as many zeros around the kernel."""
    more = [new - old for new, old in zip(padding, value.padding, strict=True)]
    sides = [side for each in reversed(more) for side in (each, each)]
    return dataclasses.replace(
        value, weight=nn.functional.pad(value.weight, sides), padding=padding
    )

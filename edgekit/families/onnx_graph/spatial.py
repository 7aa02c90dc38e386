"""Operators over space: convolutions and pools."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from edgekit.errors import EdgekitError
from edgekit.families.onnx_graph.table import operator


def window_pads(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> list[tuple[int, int]]:
    """What is added before and after each spatial dimension.

    Args:
        sizes: of the spatial dimensions.
        kernel, strides, dilations: of the window.
        pads: all that come before, then all that come after.
        auto_pad: ``NOTSET``, ``VALID``, ``SAME_UPPER`` or ``SAME_LOWER``.
    """
    rank = len(kernel)
    if auto_pad in ("NOTSET", ""):
        flat = list(pads or [0] * (2 * rank))
        return list(zip(flat[:rank], flat[rank:], strict=True))
    if auto_pad == "VALID":
        return [(0, 0)] * rank
    found = []
    for size, width, stride, gap in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + (width - 1) * gap + 1 - size, 0)
        less, more = total // 2, total - total // 2
        found.append((less, more) if auto_pad == "SAME_UPPER" else (more, less))
    return found


def padded(x: torch.Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> torch.Tensor:
    """With space around its last dimensions."""
    return F.pad(x, [amount for pair in reversed(pads) for amount in pair], value=value)


def ones(given: Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """One for each spatial dimension, where nothing is given."""
    return tuple(given) if given else (1,) * rank


@operator("Conv")
def conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    kernel_shape: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> torch.Tensor:
    """With a weight that is computed; one with a constant weight is a layer."""
    rank = x.dim() - 2
    stride, gap = ones(strides, rank), ones(dilations, rank)
    around = window_pads(x.shape[2:], weight.shape[2:], stride, gap, pads, auto_pad)
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return function(padded(x, around), weight, bias, stride, 0, gap, group)


@operator("ConvTranspose")
def conv_transpose(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    kernel_shape: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    output_padding: tuple[int, ...] | None = None,
    output_shape: tuple[int, ...] | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> torch.Tensor:
    """The gradient of a convolution; its pads are cut from the result."""
    rank = x.dim() - 2
    stride, gap, kernel = ones(strides, rank), ones(dilations, rank), weight.shape[2:]
    extra = tuple(output_padding or (0,) * rank)
    wanted = output_shape
    if auto_pad.startswith("SAME") and not output_shape:
        wanted = tuple(size * step for size, step in zip(x.shape[2:], stride, strict=True))
    around = window_pads(x.shape[2:], kernel, stride, gap, pads, "NOTSET")
    if wanted:
        spans = zip(x.shape[2:], stride, extra, kernel, gap, wanted, strict=True)
        totals = [(n - 1) * s + e + (k - 1) * d + 1 - w for n, s, e, k, d, w in spans]
        upper = auto_pad == "SAME_UPPER"
        around = [(t // 2, t - t // 2) if upper else (t - t // 2, t // 2) for t in totals]
    inside = _torch_padding(around, [sum(pair) for pair in around]) or (0,) * rank
    function: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    result = function(x, weight, bias, stride, inside, extra, group, gap)
    cut = [(p - before, p - after) for (before, after), p in zip(around, inside, strict=True)]
    return padded(result, cut) if any(map(any, cut)) else result


@operator("MaxPool")
def max_pool(
    x: torch.Tensor,
    *,
    kernel_shape: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    ceil_mode: int = 0,
    storage_order: int = 0,
    auto_pad: str = "NOTSET",
) -> torch.Tensor:
    """The greatest in each window; what is added around counts as minus infinity."""
    rank = len(kernel_shape)
    stride, gap = ones(strides, rank), ones(dilations, rank)
    around = window_pads(x.shape[2:], kernel_shape, stride, gap, pads, auto_pad)
    inside = _torch_padding(around, kernel_shape)
    if inside is None:
        x, inside = padded(x, around, -math.inf), (0,) * rank
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    return function(x, kernel_shape, stride, inside, gap, bool(ceil_mode))


@operator("AveragePool")
def average_pool(
    x: torch.Tensor,
    *,
    kernel_shape: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: str = "NOTSET",
) -> torch.Tensor:
    """The mean of each window; what is added around counts only if it is asked for."""
    rank = len(kernel_shape)
    stride, gap = ones(strides, rank), ones(dilations, rank)
    if set(gap) != {1}:
        raise EdgekitError("AveragePool with dilations is not read: torch has none.")
    around = window_pads(x.shape[2:], kernel_shape, stride, gap, pads, auto_pad)
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    inside = _torch_padding(around, kernel_shape)
    if inside is not None:
        counted = bool(count_include_pad)
        return pool(x, kernel_shape, stride, inside, bool(ceil_mode), counted)  # type: ignore[no-any-return]
    sums = pool(padded(x, around), kernel_shape, stride, 0, bool(ceil_mode))
    if count_include_pad:
        return sums  # type: ignore[no-any-return]
    inner = padded(torch.ones_like(x[:1, :1]), around)
    return sums / pool(inner, kernel_shape, stride, 0, bool(ceil_mode))  # type: ignore[no-any-return]


def _torch_padding(
    around: Sequence[tuple[int, int]], kernel: Sequence[int]
) -> tuple[int, ...] | None:
    """As torch's pools take it: equal on both sides, at most half a window. Else None."""
    if all(a == b and 2 * a <= width for (a, b), width in zip(around, kernel, strict=True)):
        return tuple(a for a, _ in around)
    return None


@operator("GlobalAveragePool")
def global_average_pool(x: torch.Tensor) -> torch.Tensor:
    """The mean of each channel."""
    return x.mean(list(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: torch.Tensor) -> torch.Tensor:
    """The greatest of each channel."""
    return x.amax(list(range(2, x.dim())), keepdim=True)


@operator("GridSample")
def grid_sample(
    x: torch.Tensor,
    grid: torch.Tensor,
    *,
    mode: str = "linear",
    padding_mode: str = "zeros",
    align_corners: int = 0,
) -> torch.Tensor:
    """Values at given places."""
    torch_mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return F.grid_sample(x, grid, torch_mode, padding_mode, bool(align_corners))

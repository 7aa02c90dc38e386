"""Operators that move elements: shapes, slices, pads, and tensors made of shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from edgekit.errors import EdgekitError
from edgekit.families.onnx_graph.elementwise import DTYPES
from edgekit.families.onnx_graph.table import Known, ints, known, operator

Axes = Any  # a tuple (an attribute), a known array (an input) or None


def places(axes: Axes, rank: int) -> list[int]:
    """Axes as non-negative integers; None is all."""
    if axes is None:
        return list(range(rank))
    return [axis % rank for axis in ints(np.asarray(axes))]


@operator("Shape")
def shape(x: torch.Tensor, *, start: int = 0, end: int | None = None) -> Known:
    """Known, although the tensor is not."""
    return known(list(x.shape)[start:end])


@operator("Size")
def size(x: torch.Tensor) -> Known:
    """Known, although the tensor is not."""
    return known([x.numel()]).reshape(())


@operator("Reshape", known="shape")
def reshape(x: torch.Tensor, shape: Known, *, allowzero: int = 0) -> torch.Tensor:
    """A 0 keeps a dimension, -1 is what is left."""
    sizes = ints(shape)
    if not allowzero:
        sizes = [
            x.shape[axis] if isinstance(size, int) and size == 0 else size
            for axis, size in enumerate(sizes)
        ]
    return torch.reshape(x, sizes)


@operator("Flatten")
def flatten(x: torch.Tensor, *, axis: int = 1) -> torch.Tensor:
    """To a matrix: the dimensions before ``axis``, and the others."""
    if axis % (x.dim() or 1) == 1 and axis != 0:
        return torch.flatten(x, 1) if x.dim() > 1 else x.reshape(-1, 1)
    before = list(x.shape)[:axis] if axis >= 0 else list(x.shape)[: x.dim() + axis]
    rows = 1
    for length in before:
        rows = rows * length
    return torch.reshape(x, (rows, -1))


@operator("Transpose")
def transpose(x: torch.Tensor, *, perm: tuple[int, ...] | None = None) -> torch.Tensor:
    """By default, all dimensions reversed."""
    return x.permute(perm if perm is not None else tuple(reversed(range(x.dim()))))


@operator("Squeeze", known="axes")
def squeeze(x: torch.Tensor, axes: Axes = None) -> torch.Tensor:
    """Without the dimensions of size one that are named, or without all."""
    return x.squeeze() if axes is None else x.squeeze(places(axes, x.dim()))


@operator("Unsqueeze", known="axes")
def unsqueeze(x: torch.Tensor, axes: Axes) -> torch.Tensor:
    """With dimensions of size one at these places of the result."""
    for axis in sorted(places(axes, x.dim() + np.asarray(axes).size)):
        x = x.unsqueeze(axis)
    return x


@operator("Expand", known="shape")
def expand(x: torch.Tensor, shape: Known) -> torch.Tensor:
    """Broadcast with a shape, which may itself have ones."""
    sizes = ints(shape)
    rank = max(len(sizes), x.dim())
    wanted = [1] * (rank - len(sizes)) + sizes
    own = [1] * (rank - x.dim()) + list(x.shape)
    return x.expand([
        old if isinstance(new, int) and new == 1 else new
        for new, old in zip(wanted, own, strict=True)
    ])  # fmt: skip


@operator("Tile", known="repeats")
def tile(x: torch.Tensor, repeats: Known) -> torch.Tensor:
    """Repeated along each dimension."""
    return x.repeat(ints(repeats))


@operator("Concat")
def concat(*values: torch.Tensor, axis: int) -> torch.Tensor:
    """Along one dimension."""
    return torch.cat(values, axis)


@operator("Split", known="split")
def split(
    x: torch.Tensor,
    split: Axes = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    count: int,
) -> tuple[torch.Tensor, ...]:
    """By sizes, or into equal parts of which the last may be smaller."""
    if split is not None:
        return torch.split(x, ints(np.asarray(split)), axis)
    part = -(-x.shape[axis] // (num_outputs or count))
    return torch.split(x, part, axis)


@operator("Slice", known="starts ends axes steps")
def slice_(
    x: torch.Tensor, starts: Axes, ends: Axes, axes: Axes = None, steps: Axes = None
) -> torch.Tensor:
    """Along some dimensions; a negative step reverses."""
    begin, end = (ints(np.asarray(bounds)) for bounds in (starts, ends))
    strides = ints(np.asarray(steps)) if steps is not None else [1] * len(begin)
    chosen = places(axes, x.dim())[: len(begin)]
    for axis, low, high, step in zip(chosen, begin, end, strides, strict=True):
        if step < 0:
            length = x.shape[axis]
            low, high, step = slice(low, high, step).indices(length)
            x, low, high, step = x.flip(axis), length - 1 - low, length - 1 - high, -step
        x = torch.ops.aten.slice.Tensor(x, axis, low, high, step)
    return x


@operator("Pad", known="pads axes", numbers=True)
def pad(
    x: torch.Tensor,
    pads: Axes,
    constant_value: Any = None,
    axes: Axes = None,
    *,
    mode: str = "constant",
    value: float = 0.0,
) -> torch.Tensor:
    """Around some dimensions, by a value or by the elements themselves."""
    amounts = ints(np.asarray(pads))
    half = len(amounts) // 2
    around = dict.fromkeys(range(x.dim()), (0, 0))
    pairs = zip(amounts[:half], amounts[half:], strict=True)
    around |= dict(zip(places(axes, x.dim()), pairs, strict=True))
    while len(around) > 1 and around[min(around)] == (0, 0):
        del around[min(around)]
    flat = [amount for axis in sorted(around, reverse=True) for amount in around[axis]]
    if mode == "constant":
        number = value if constant_value is None else constant_value
        return F.pad(x, flat, value=number.item() if hasattr(number, "item") else number)
    if len(around) > x.dim() - 1 or len(around) > 3:
        raise EdgekitError(f"Pad in mode {mode!r} of {len(around)} dimensions is not read.")
    # Torch wants a batch and channels in front of as many dimensions as are padded.
    wide = x.reshape([1, -1, *x.shape[x.dim() - len(around) :]])
    torch_mode = {"edge": "replicate", "wrap": "circular"}.get(mode, mode)
    padded = F.pad(wide, flat, mode=torch_mode)
    return padded.reshape([*x.shape[: x.dim() - len(around)], *padded.shape[2:]])


@operator("Trilu", known="k")
def trilu(x: torch.Tensor, k: Any = None, *, upper: int = 1) -> torch.Tensor:
    """The upper or lower triangle."""
    diagonal = 0 if k is None else int(np.asarray(k).item())
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@operator("Range", known="start limit delta")
def range_(start: Known, limit: Known, delta: Known) -> torch.Tensor:
    """With a symbolic bound; else it is known."""
    return torch.arange(start.item(), limit.item(), delta.item())


@operator("ConstantOfShape", known="shape")
def constant_of_shape(shape: Known, *, value: Known | None = None) -> torch.Tensor:
    """With a symbolic size; else it is known."""
    fill = np.zeros(1, np.float32) if value is None else value
    dtype = torch.from_numpy(fill).dtype
    return torch.full(ints(shape), fill.reshape(-1)[0].item(), dtype=dtype)


@operator("EyeLike")
def eye_like(x: torch.Tensor, *, dtype: int | None = None, k: int = 0) -> torch.Tensor:
    """Ones on one diagonal."""
    rows, columns = x.shape
    ones = torch.ones(rows, columns, dtype=DTYPES[dtype] if dtype else x.dtype)
    return torch.triu(torch.tril(ones, k), k)


@operator("DepthToSpace")
def depth_to_space(x: torch.Tensor, *, blocksize: int, mode: str = "DCR") -> torch.Tensor:
    """Channels become blocks of pixels, in depth-column-row or column-row-depth order."""
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    n, c, h, w = x.shape
    blocks = x.reshape(n, blocksize, blocksize, c // blocksize**2, h, w)
    moved = blocks.permute(0, 3, 4, 1, 5, 2)
    return moved.reshape(n, c // blocksize**2, h * blocksize, w * blocksize)


@operator("SpaceToDepth")
def space_to_depth(x: torch.Tensor, *, blocksize: int) -> torch.Tensor:
    """Blocks of pixels become channels."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize)
    moved = blocks.permute(0, 3, 5, 1, 2, 4)
    return moved.reshape(n, c * blocksize**2, h // blocksize, w // blocksize)


@operator("Dropout")
def dropout(
    x: torch.Tensor, ratio: Any = None, training_mode: Any = None, *, seed: int = 0
) -> torch.Tensor:
    """Nothing, in evaluation."""
    return x

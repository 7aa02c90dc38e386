"""Operators that move elements without computing: reshape, slice, concatenate, pad."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.converters.mil_ops import Table

if TYPE_CHECKING:
    from torch import Tensor


def table() -> Table:
    """MIL name -> function."""
    import torch
    from torch.nn import functional

    return {
        "band_part": band_part,
        "concat": concat,
        "crop": lambda x, crop_height, crop_width: pad(
            x, [-size for size in (*crop_height, *crop_width)]
        ),
        "expand_dims": expand_dims,
        "fill": lambda shape, value=0.0: torch.full(_ints(shape), value),
        "fill_like": lambda ref_tensor, value=0.0: torch.full(ref_tensor.shape, value),
        "flatten2d": lambda x, axis=1: x.reshape(x.shape[:axis].numel(), -1),
        "pad": pad,
        "pixel_shuffle": lambda x, upscale_factor: functional.pixel_shuffle(x, upscale_factor),
        "pixel_unshuffle": lambda x, downscale_factor: functional.pixel_unshuffle(
            x, downscale_factor
        ),
        "range_1d": lambda end, start, step: torch.arange(start.item(), end.item(), step.item()),
        "reshape": reshape,
        "reverse": lambda x, axes=None: x.flip(list(range(x.ndim)) if axes is None else axes),
        "shape": lambda x: torch.tensor(x.shape),
        "slice_by_index": slice_by_index,
        "slice_by_size": slice_by_size,
        "slice_update": slice_update,
        "sliding_windows": sliding_windows,
        "split": split,
        "squeeze": lambda x, axes=None: x.squeeze() if axes is None else x.squeeze(tuple(axes)),
        "stack": lambda values, axis: torch.stack(values, axis),
        "tile": lambda x, reps: x.repeat(_ints(reps)),
        "transpose": lambda x, perm: x.permute(perm),
    }


def _ints(value: Any) -> list[int]:
    """A vector of sizes, given as a tensor or as a list."""
    return [int(size) for size in value]


def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Zeros outside a band of the innermost matrices; a negative width keeps that side."""
    if lower >= 0:
        x = x.triu(-lower)
    return x.tril(upper) if upper >= 0 else x


def concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    """Values one after another along an axis, or element by element if interleaved."""
    import torch

    values = [value.reshape(1) if value.ndim == 0 else value for value in values]
    if not interleave:
        return torch.cat(values, axis)
    axis %= values[0].ndim
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


def expand_dims(x: Tensor, axes: list[int]) -> Tensor:
    """Axes of size 1 at the given places of the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def reshape(x: Tensor, shape: Any) -> Tensor:
    """The same elements in another shape; 0 copies a size, -1 is inferred."""
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(_ints(shape))])


def pad(x: Tensor, pad: Any, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """Pad the last ``len(pad) / 2`` axes; negative widths crop."""
    import torch
    from torch.nn import functional

    sizes = _ints(pad)
    pairs = list(zip(sizes[::2], sizes[1::2], strict=True))
    if mode == "constant":
        innermost_first = [size for pair in reversed(pairs) for size in pair]
        return functional.pad(x, innermost_first, value=constant_val)
    for axis, (before, after) in enumerate(pairs, start=x.ndim - len(pairs)):
        last = x.shape[axis] - 1
        places = torch.arange(-before, last + 1 + after)
        mirrored = last - (last - places.abs()).abs()
        x = x.index_select(axis, mirrored if mode == "reflect" else places.clamp(0, last))
    return x


def _slices(
    x: Tensor,
    begin: Any,
    end: Any,
    stride: list[int] | None,
    begin_mask: list[bool] | None,
    end_mask: list[bool] | None,
    squeeze_mask: list[bool] | None,
) -> list[range]:
    """The indices that a slice takes, one range an axis."""
    none = [False] * x.ndim
    skip_begin, skip_end, single = begin_mask or none, end_mask or none, squeeze_mask or none
    ranges = []
    for axis, (first, last) in enumerate(zip(_ints(begin), _ints(end), strict=True)):
        size, step = x.shape[axis], stride[axis] if stride else 1
        if single[axis]:
            ranges.append(range(first % size, first % size + 1))
            continue
        bounds = slice(None if skip_begin[axis] else first, None if skip_end[axis] else last, step)
        ranges.append(range(*bounds.indices(size)))
    return ranges


def slice_by_index(
    x: Tensor,
    begin: Any,
    end: Any,
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """``x[begin:end:stride]`` on every axis; squeezed axes are dropped."""
    import torch

    ranges = _slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    for axis, places in enumerate(ranges):
        if places.step < 0:
            x = x.index_select(axis, torch.tensor(places))
        else:
            x = x.narrow(axis, places.start, 0) if not places else x[_cut(axis, places)]
    return x.squeeze([axis for axis, single in enumerate(squeeze_mask or []) if single])


def _cut(axis: int, places: range) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, slice(places.start, places.stop, places.step))


def slice_by_size(x: Tensor, begin: Any, size: Any) -> Tensor:
    """``size`` elements from ``begin`` on every axis; -1 takes the rest."""
    for axis, (first, count) in enumerate(zip(_ints(begin), _ints(size), strict=True)):
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Any,
    end: Any,
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """A copy of ``x`` with ``x[begin:end:stride] = update``."""
    import torch

    ranges = _slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    grid = torch.meshgrid(*[torch.tensor(places) for places in ranges], indexing="ij")
    return x.index_put(grid, update.reshape(grid[0].shape))


def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """Windows of ``size`` elements along an axis, which becomes two: window, element."""
    axis %= x.ndim
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)


def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: list[int] | None = None
) -> list[Tensor]:
    """Pieces of the given sizes, or as many equal ones as asked."""
    import torch

    count = num_splits or 1
    sizes = split_sizes or [x.shape[axis] // count] * count
    return list(torch.split(x, sizes, axis))

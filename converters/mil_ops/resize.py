"""Operators that resample the last two axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from edgekit.converters.mil_ops import Table

if TYPE_CHECKING:
    from torch import Tensor


def table() -> Table:
    """MIL name -> function."""
    return {
        "resize": resize,
        "resize_bilinear": lambda x, target_size_height=1, target_size_width=1, **mode: _bilinear(
            x, (target_size_height, target_size_width), **mode
        ),
        "resize_nearest_neighbor": lambda x, target_size_height, target_size_width: _nearest(
            x, (target_size_height, target_size_width)
        ),
        "upsample_bilinear": upsample_bilinear,
        "upsample_nearest_neighbor": lambda x, **scales: _nearest(x, _scaled(x, **scales)),
    }


def _scaled(
    x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1
) -> tuple[int, int]:
    height, width = x.shape[-2:]
    return math.floor(height * scale_factor_height), math.floor(width * scale_factor_width)


def resize(
    x: Tensor,
    shape: Any,
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """Resample the last ``resized_dims`` axes to the last sizes of ``shape`` (0 keeps one)."""
    sizes = [int(size) for size in shape][-int(resized_dims) :]
    sizes = [size or old for size, old in zip(sizes, x.shape[-len(sizes) :], strict=True)]
    if interpolation_mode == "NEAREST_NEIGHBOR":
        return _nearest(x, sizes)
    return _bilinear(x, sizes, sampling_mode)


def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """Bilinear resampling to floor(size * scale)."""
    halves = not align_corners if half_pixel_centers is None else half_pixel_centers
    plain = "STRICT_ALIGN_CORNERS" if align_corners else "ASYMMETRIC"
    mode = "UNALIGN_CORNERS" if halves else plain
    return _bilinear(x, _scaled(x, scale_factor_height, scale_factor_width), mode)


def _nearest(x: Tensor, sizes: Any) -> Tensor:
    """The element at floor(i * old / new), on the last axes."""
    import torch

    for axis, size in enumerate(sizes, start=x.ndim - len(sizes)):
        x = x.index_select(axis, torch.arange(size) * x.shape[axis] // size)
    return x


def _bilinear(x: Tensor, sizes: Any, sampling_mode: str = "DEFAULT") -> Tensor:
    """Linear interpolation on each of the last axes, one after another."""
    for axis, size in enumerate(sizes, start=x.ndim - len(sizes)):
        if size == x.shape[axis]:
            continue  # every mode then samples the elements themselves
        places = _grid(sampling_mode, x.shape[axis], size)
        low = places.floor().long().clamp(max=x.shape[axis] - 1)
        high = (low + 1).clamp(max=x.shape[axis] - 1)
        weight = (places - low).reshape(-1, *[1] * (x.ndim - 1 - axis))
        x = x.index_select(axis, low) * (1 - weight) + x.index_select(axis, high) * weight
    return x


def _grid(mode: str, old: int, new: int) -> Tensor:
    """Where each of ``new`` samples lies among ``old`` elements, by MIL's sampling mode."""
    import torch

    i = torch.arange(new, dtype=torch.float32)
    gaps = max(new - 1, 1)
    if mode == "OFFSET_CORNERS":
        delta = max(1, old - 1) / new
        return (0.5 * delta + i * delta).clamp(0, old - 1)
    if mode == "ALIGN_CORNERS" and new == 1:
        return torch.tensor([(old - 1) / 2])
    places = {
        "STRICT_ALIGN_CORNERS": i * (old - 1) / gaps,
        "ALIGN_CORNERS": i * (old - 1) / gaps,
        "DEFAULT": i * (old - old / new) / gaps,
        "UNALIGN_CORNERS": (i + 0.5) * old / new - 0.5,
        "ASYMMETRIC": i * old / new,
    }
    return places[mode].clamp(0, old - 1)

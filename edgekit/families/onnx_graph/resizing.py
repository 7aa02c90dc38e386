"""Resizing: what torch computes equally, and the nearest element in every way of choosing it."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from edgekit.errors import EdgekitError
from edgekit.families.onnx_graph.shaping import Axes, places
from edgekit.families.onnx_graph.table import Known, operator


@operator("Upsample", known="scales")
def upsample(x: torch.Tensor, scales: Axes, *, mode: str = "nearest") -> torch.Tensor:
    """Resize, in its first form."""
    return resize(x, None, np.asarray(scales), mode=mode, opset=10)


@operator("Resize", known="roi scales sizes")
def resize(
    x: torch.Tensor,
    roi: Known | None = None,
    scales: Known | None = None,
    sizes: Known | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    antialias: int = 0,
    axes: tuple[int, ...] | None = None,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    opset: int,
) -> torch.Tensor:
    """To other sizes, in every way that torch computes equally; others are refused."""
    if opset < 11:  # Resize(x, scales)
        scales = roi if scales is None else scales
        coordinate_transformation_mode, nearest_mode = "asymmetric", "floor"
    chosen = places(axes, x.dim())
    factors, lengths = _resized(x, chosen, scales, sizes)
    _refuse(keep_aspect_ratio_policy != "stretch", f"keeps the aspect ratio ({chosen})")
    if mode == "nearest":
        return _nearest(x, factors, lengths, coordinate_transformation_mode, nearest_mode)
    aligned = coordinate_transformation_mode == "align_corners"
    centred = coordinate_transformation_mode in ("half_pixel", "pytorch_half_pixel")
    _refuse(not (aligned or centred), f"has coordinates {coordinate_transformation_mode!r}")
    _refuse(mode == "cubic" and cubic_coeff_a != -0.75, f"has cubic_coeff_a {cubic_coeff_a}")
    _refuse(bool(exclude_outside and not antialias), "excludes what is outside")
    _refuse(any(axis in lengths for axis in (0, 1)), "changes the batch or the channels")
    rank = x.dim() - 2
    name = {"linear": ("linear", "bilinear", "trilinear")[rank - 1], "cubic": "bicubic"}[mode]
    target = [lengths.get(axis, x.shape[axis]) for axis in range(2, x.dim())]
    by_size = all(lengths[axis] == x.shape[axis] * factors[axis] for axis in lengths)
    return F.interpolate(
        x,
        size=target if by_size or aligned else None,
        scale_factor=None
        if by_size or aligned
        else [factors.get(a, 1.0) for a in range(2, 2 + rank)],
        mode=name,
        align_corners=aligned,
        antialias=bool(antialias),
    )


def _resized(
    x: torch.Tensor, chosen: list[int], scales: Known | None, sizes: Known | None
) -> tuple[dict[int, float], dict[int, int]]:
    """The factor and new length of each dimension that changes."""
    factors: dict[int, float] = {}
    lengths: dict[int, int] = {}
    by_scale = scales is not None and scales.size > 0
    wanted = scales if by_scale else sizes
    if wanted is None:
        raise EdgekitError("A Resize gives neither scales nor sizes.")
    for axis, value in zip(chosen, wanted.tolist(), strict=True):
        length = x.shape[axis]
        if by_scale and value != 1:
            factors[axis], lengths[axis] = value, math.floor(length * value)
        elif not by_scale and value is not length and value != length:
            factors[axis], lengths[axis] = value / length, value
    return factors, lengths


def _refuse(wrong: bool, why: str) -> None:
    if wrong:
        raise EdgekitError(
            "This form of Resize is not read.",
            f"It {why}, and torch computes no equal.",
            "Export it as torch does: half_pixel or align_corners, linear, cubic or nearest.",
        )


def _nearest(
    x: torch.Tensor,
    factors: dict[int, float],
    lengths: dict[int, int],
    coordinates: str,
    rounding: str,
) -> torch.Tensor:
    """Each new row is an old one; all ways to choose it are equal for most factors."""
    rows = {
        axis: _sources(x.shape[axis], lengths[axis], factors[axis], coordinates, rounding)
        for axis in lengths
    }
    plain = all(
        np.array_equal(found, np.arange(lengths[axis]) * x.shape[axis] // lengths[axis])
        for axis, found in rows.items()
    )
    if plain and rows and 3 <= x.dim() <= 5 and min(rows) >= 2:
        target = [lengths.get(axis, x.shape[axis]) for axis in range(2, x.dim())]
        return F.interpolate(x, size=target, mode="nearest")
    for axis, found in rows.items():
        x = torch.index_select(x, axis, torch.from_numpy(found))
    return x


def _sources(old: int, new: int, ratio: float, coordinates: str, rounding: str) -> Known:
    """For each new place, the old one that it copies."""
    # In the precision of the runtimes: it decides ties.
    place, factor = np.arange(new, dtype=np.float32), np.float32(ratio)
    forms = {
        "half_pixel": (place + 0.5) / factor - 0.5,
        "pytorch_half_pixel": (place + 0.5) / factor - 0.5 if new > 1 else place * 0,
        "asymmetric": place / factor,
        "align_corners": place * (old - 1) / (new - 1) if new > 1 else place * 0,
    }
    _refuse(coordinates not in forms, f"has coordinates {coordinates!r}")
    at = forms[coordinates]
    rounded = {
        "round_prefer_floor": np.ceil(at - 0.5),
        "round_prefer_ceil": np.floor(at + 0.5),
        "floor": np.floor(at),
        "ceil": np.ceil(at),
    }[rounding]
    return np.clip(rounded, 0, old - 1).astype(np.int64)

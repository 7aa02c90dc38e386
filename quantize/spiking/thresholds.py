"""Thresholds: where a unit of T steps has its last level, from what enters an activation.

With x what enters, a(x) what the activation makes of it (x itself in front of a patch embedding),
and q the unit (``operators/qcfs.py``) whose level stands for threshold / T,

    mse:         argmin over thresholds of the mean of (a(x) - q(x))^2
    percentile:  the least value that a share of all x above zero does not exceed

of each channel. One that is hardly ever above zero has the median of the others' thresholds.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from edgekit.errors import EdgekitError
from edgekit.operators.qcfs import of_levels

Method = Literal["mse", "percentile"]
#: Thresholds that are tried, evenly up to the largest value.
CANDIDATES = 48
#: Of the median channel's peak: below it a channel adds next to nothing, and what it is multiplied
#: by to give levels might be no float16.
_LEAST = 1e-3


def find(
    x: Tensor, wanted: Tensor, steps: int, signed: bool, method: Method, percentile: float
) -> Tensor:
    """One threshold a column.

    Args:
        x: what enters, (n, channels), finite.
        wanted: what the activation makes of it, the same shape.
        percentile: 0 to 100, of ``percentile``.

    Returns:
        Thresholds above zero, (channels,).

    Raises:
        EdgekitError: no value is above zero.
    """
    heights = x.abs() if signed else x
    peaks = heights.amax(0)
    if not peaks.max() > 0:
        raise EdgekitError(
            "No value is above zero.",
            "A unit there would never fire, and there is nothing to find its threshold by.",
            "Calibrate with other data, or leave it out with exclude=[GLOB].",
        )
    if method == "percentile":
        found = _share(heights, percentile)
    else:
        found = _least_error(x, wanted, peaks, steps, signed)
    least = _LEAST * peaks[peaks > 0].median()
    active = peaks > least
    return torch.where(active, found, found[active].median()).clamp_min(least)


def _least_error(x: Tensor, wanted: Tensor, peaks: Tensor, steps: int, signed: bool) -> Tensor:
    """The candidate of least mean squared error, column by column."""
    best, found = torch.full_like(peaks, float("inf")), peaks.clone()
    for share in torch.linspace(1 / CANDIDATES, 1, CANDIDATES).tolist():
        level = (peaks.clamp_min(torch.finfo(peaks.dtype).tiny) * share) / steps
        error = of_levels(x / level, 1.0, steps, signed, "folded").mul_(level).sub_(wanted)
        error = error.square_().mean(0)
        better = error < best
        best, found = torch.where(better, error, best), torch.where(better, level * steps, found)
    return found


def _share(heights: Tensor, percentile: float) -> Tensor:
    """The least value that so many of those above zero do not exceed; 0 where there are none."""
    count = (heights > 0).sum(0)
    place = len(heights) - count + (count * (percentile / 100)).ceil().long().clamp_min(1) - 1
    row = place.clamp_max(len(heights) - 1)
    return heights.sort(0).values.gather(0, row[None])[0].clamp_min(0)

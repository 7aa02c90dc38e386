"""Weights: their scales, and the levels that they are rounded to."""

from __future__ import annotations

import torch

from edgekit.quantize.scales import Entry, half_exact
from edgekit.quantize.schemes import QMAX, Scheme

#: Shares of the largest magnitude that are tried as a 4-bit range.
_SHARES = torch.linspace(1, 0.5, 26).tolist()
#: What their errors are raised to, as in GPTQ's own code. Squares clip large weights more than
#: is good for the layer's output: 0.5 dB on the digits ViT.
_POWER = 2.4


def weight_entry(weight: torch.Tensor, operator: str, scheme: Scheme) -> Entry:
    """The scales of a weight (out, in, ...), by channel or group.

    Min-max at 8 bits. At 4 bits the range with the least error, since 15 levels are too few to
    spend on one large value. A layer whose inputs the group does not divide gets one
    scale a channel, which its ``group`` of None says.
    """
    group = scheme.group
    rows = weight.detach().double().flatten(1)
    if group is not None and (operator == "conv" or rows.shape[1] % group):
        group = None
    if scheme.granularity == "tensor":
        rows = rows.reshape(1, -1)
    blocks = rows.reshape(-1, group or rows.shape[1])
    qmax = QMAX[scheme.weight]
    peak = blocks.abs().amax(1)
    if scheme.weight == "int4":
        peak = peak * _best_share(blocks, peak, qmax)
    scale = half_exact((peak / qmax).numpy())
    if scheme.granularity == "tensor":
        scale = scale.repeat(len(weight))
    return Entry(
        kind="weight",
        operator=operator,
        dtype=scheme.weight,
        group=group,
        scale=tuple(scale.tolist()),
    )


def levels(weight: torch.Tensor, entry: Entry) -> torch.Tensor:
    """The nearest levels: int8 (out, in, ...), or float8 for fp8."""
    stored = torch.float8_e4m3fn if entry.dtype == "fp8" else torch.int8
    scaled = weight.detach().double() / spread(scale_of(entry), weight)
    return nearest(scaled, entry.dtype).to(stored)


def nearest(scaled: torch.Tensor, dtype: str) -> torch.Tensor:
    """The levels of a dtype nearest to values in units of the scale, as float64."""
    clipped = scaled.double().clamp(-QMAX[dtype], QMAX[dtype])
    return clipped.to(torch.float8_e4m3fn).double() if dtype == "fp8" else clipped.round()


def rounded(weight: torch.Tensor, entry: Entry) -> torch.Tensor:
    """The weight as its levels represent it, in its own dtype."""
    return real(levels(weight, entry), scale_of(entry)).to(weight.dtype)


def real(stored: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What levels stand for, in float64."""
    return stored.double() * spread(scale, stored)


def scale_of(entry: Entry) -> torch.Tensor:
    """An entry's scales as float64."""
    return torch.tensor(entry.scale, dtype=torch.float64)


def spread(scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A weight's scales, one or more an output channel, for each of its values in its shape."""
    rows = weight.flatten(1)
    by_channel = scale.double().reshape(len(rows), -1)
    return by_channel.repeat_interleave(rows.shape[1] // by_channel.shape[1], 1).reshape(
        weight.shape
    )


def _best_share(blocks: torch.Tensor, peak: torch.Tensor, qmax: int) -> torch.Tensor:
    """For each block, the share of its peak that as a range gives the least error."""
    best = torch.ones_like(peak)
    least = torch.full_like(peak, torch.inf)
    for share in _SHARES:
        scale = (peak * share / qmax).clamp_min(1e-30)[:, None]
        error = ((blocks / scale).round().clamp(-qmax, qmax) * scale - blocks).abs()
        error = error.pow(_POWER).sum(1)
        best = torch.where(error < least, share, best)
        least = torch.minimum(error, least)
    return best

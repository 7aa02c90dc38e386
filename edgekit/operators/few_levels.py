"""few_levels: a weight as a scale for each output channel, times -1 and 1, or -1, 0 and 1.

Binary (M. Rastegari et al., "XNOR-Net", ECCV 2016, equation 6), of a channel's weights w:

    y = a sign(w),  a = mean |w|

Ternary (F. Li et al., "Ternary Weight Networks", 2016), with S the k largest |w| of a channel:

    y = a sign(w) where w is in S, else 0,  a = mean_S |w|,  k = argmax (sum_S |w|)^2 / k

Both are the least squares; Li et al. take what is above 0.7 mean |w| for S, which sorting gives
exactly. The scale is rounded to 127 times a float16, so that 8-bit levels of -127, 0 and 127 are y.
"""

from __future__ import annotations

from typing import Any

import torch

LEVELS = ("binary", "ternary")
#: The level of 8 bits that a scale stands for.
_PEAK = 127
#: A row of fewer weights has few values whatever they are.
_LEAST = 4


@torch.library.custom_op("edgekit::few_levels", mutates_args=())
def few_levels(weight: torch.Tensor, levels: str) -> torch.Tensor:
    """The weight (out, ...) that has few levels; gradients pass straight through.

    Args:
        levels: one of ``LEVELS``.
    """
    rows = weight.flatten(1)
    size = rows.abs()
    kept = torch.ones_like(size) if levels == "binary" else _largest(size)
    mean = (size * kept).double().sum(1, keepdim=True) / kept.sum(1, keepdim=True)
    scale = (mean / _PEAK).half().to(weight.dtype) * _PEAK
    signs = torch.where(rows < 0, -1.0, 1.0).to(weight.dtype)
    return (scale * signs * kept).reshape(weight.shape)


@few_levels.register_fake
def _(weight: torch.Tensor, levels: str) -> torch.Tensor:
    return torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """There is nothing to keep."""


def _back(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
    return gradient, None


few_levels.register_autograd(_back, setup_context=_keep)


def is_few_levels(weight: Any) -> bool:
    """Whether each row of a tensor (out, ...) holds no values but -a, 0 and a, with its own a.

    Zeros alone, and rows of so few weights that this says nothing, do not count.
    """
    if weight.dim() < 2 or weight[0].numel() < _LEAST or not weight.is_floating_point():
        return False
    size = weight.detach().flatten(1).abs()
    peak = size.amax(1, keepdim=True)
    return bool(peak.any()) and bool(((size == 0) | (size == peak)).all())


def _largest(size: torch.Tensor) -> torch.Tensor:
    """1 at the weights of each row that are not 0 in the least squares."""
    ordered, places = size.sort(dim=1, descending=True, stable=True)
    count = torch.arange(1, size.shape[1] + 1, device=size.device)
    best = (ordered.double().cumsum(1).square() / count).argmax(1, keepdim=True)
    return torch.zeros_like(size).scatter(1, places, (count - 1 <= best).to(size.dtype))

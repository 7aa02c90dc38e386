"""Operators that reduce or scan axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgekit.converters.mil_ops import Table

if TYPE_CHECKING:
    from torch import Tensor


def table() -> Table:
    """MIL name -> function."""
    import torch

    def over(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
        def reduce(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
            return function(x, list(range(x.ndim)) if axes is None else axes, keep_dims)

        return reduce

    return {
        "reduce_sum": over(lambda x, a, k: x.sum(a, keepdim=k)),
        "reduce_mean": over(lambda x, a, k: x.mean(a, keepdim=k)),
        "reduce_max": over(lambda x, a, k: x.amax(a, keepdim=k)),
        "reduce_min": over(lambda x, a, k: x.amin(a, keepdim=k)),
        "reduce_l1_norm": over(lambda x, a, k: x.abs().sum(a, keepdim=k)),
        "reduce_l2_norm": over(lambda x, a, k: x.square().sum(a, keepdim=k).sqrt()),
        "reduce_sum_square": over(lambda x, a, k: x.square().sum(a, keepdim=k)),
        "reduce_log_sum": over(lambda x, a, k: x.sum(a, keepdim=k).log()),
        "reduce_log_sum_exp": over(lambda x, a, k: torch.logsumexp(x, a, keepdim=k)),
        "reduce_prod": over(_product),
        "reduce_argmax": lambda x, axis=-1, keep_dims=False, output_dtype="int32": torch.argmax(
            x, axis, keepdim=keep_dims
        ),
        "reduce_argmin": lambda x, axis=-1, keep_dims=False, output_dtype="int32": torch.argmin(
            x, axis, keepdim=keep_dims
        ),
        "argsort": lambda x, axis=-1, ascending=False: torch.argsort(
            x, stable=True, dim=axis, descending=not ascending
        ),
        "cumsum": cumsum,
        "softmax": lambda x, axis=-1: torch.softmax(x, axis),
        "topk": topk,
    }


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Running sum along an axis; ``exclusive`` leaves out each element itself."""
    if reverse:
        return cumsum(x.flip(axis), axis, exclusive).flip(axis)
    return x.cumsum(axis) - x if exclusive else x.cumsum(axis)


def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> list[Tensor]:
    """The k largest (or smallest) values along an axis and their indices; -1 takes all."""
    import torch

    count = x.shape[axis] if k == -1 else k
    values, indices = torch.topk(x, count, axis, largest=not ascending, sorted=True)
    return [values, indices] if return_indices else [values]

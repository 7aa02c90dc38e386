"""Operators that gather and scatter by index tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.converters.mil_ops import Table
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from torch import Tensor


def table() -> Table:
    """MIL name -> function."""
    import torch

    return {
        "gather": gather,
        "gather_along_axis": lambda x, indices, axis=0, validate_indices=False: torch.gather(
            x, axis, _wrapped(indices, x.shape[axis])
        ),
        "gather_nd": gather_nd,
        "non_zero": lambda x: torch.nonzero(x),
        "one_hot": one_hot,
        "scatter": scatter,
        "scatter_along_axis": scatter_along_axis,
        "scatter_nd": scatter_nd,
    }


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """int64 indices, with negative ones counted from the end (as before iOS 17)."""
    indices = indices.long()
    return indices.where(indices >= 0, indices + size)


def gather(
    x: Tensor,
    indices: Tensor,
    axis: int = 0,
    batch_dims: int = 0,
    validate_indices: bool = False,
) -> Tensor:
    """Slices of ``x`` along ``axis``, at indices of any shape, after shared leading axes."""
    import torch

    axis %= x.ndim
    if batch_dims:
        pairs = zip(x, indices, strict=True)
        return torch.stack([gather(a, b, axis - 1, batch_dims - 1) for a, b in pairs])
    taken = x.index_select(axis, _wrapped(indices, x.shape[axis]).reshape(-1))
    return taken.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def gather_nd(
    x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """``x[indices[..., 0], indices[..., 1], ...]``, after shared leading axes."""
    import torch

    if batch_dims:
        pairs = zip(x, indices, strict=True)
        return torch.stack([gather_nd(a, b, batch_dims - 1) for a, b in pairs])
    return x[tuple(indices.long().unbind(-1))]


def one_hot(
    indices: Tensor,
    one_hot_vector_size: Tensor,
    axis: int = -1,
    on_value: float = 1,
    off_value: float = 0,
) -> Tensor:
    """``on_value`` at each index along a new axis, ``off_value`` elsewhere."""
    import torch
    from torch.nn import functional

    hot = functional.one_hot(indices.long(), int(one_hot_vector_size)).movedim(-1, axis)
    return torch.where(hot.bool(), on_value, off_value)


def _signed(updates: Tensor, mode: str) -> Tensor:
    """What ``add`` and ``sub`` accumulate; ``update`` replaces."""
    if mode not in ("update", "add", "sub"):
        raise EdgekitError(
            f"The Core ML evaluator cannot scatter with mode {mode!r}.",
            "It knows the modes update, add and sub.",
            "Run the package on macOS, or replace this scatter in the model.",
        )
    return -updates if mode == "sub" else updates


def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """A copy of ``data`` with slices along ``axis`` replaced or added to."""
    places, values = _wrapped(indices, data.shape[axis]), _signed(updates, mode)
    if mode == "update":
        return data.index_copy(axis, places, values)
    return data.index_add(axis, places, values)


def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """A copy of ``data`` with elements along ``axis`` replaced or added to."""
    places, values = _wrapped(indices, data.shape[axis]), _signed(updates, mode)
    if mode == "update":
        return data.scatter(axis, places, values)
    return data.scatter_add(axis, places, values)


def scatter_nd(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """A copy of ``data`` with ``data[indices[..., 0], ...]`` replaced or added to."""
    places = tuple(indices.long().unbind(-1))
    return data.index_put(places, _signed(updates, mode), accumulate=mode != "update")

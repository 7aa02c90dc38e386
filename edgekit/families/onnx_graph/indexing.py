"""Operators that take or put elements by index."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from edgekit.errors import EdgekitError
from edgekit.families.onnx_graph.table import Known, operator


@operator("Gather", numbers=True)
def gather(x: torch.Tensor, indices: Any, *, axis: int = 0) -> torch.Tensor:
    """Rows by index; one index drops the dimension."""
    if not isinstance(indices, torch.Tensor):
        return x.select(axis, indices)
    if axis % x.dim() == 0 and x.dim() == 2:
        return F.embedding(indices, x)
    axis = axis % x.dim()
    if indices.dim() == 1:
        return torch.index_select(x, axis, indices)
    found = torch.index_select(x, axis, indices.reshape(-1))
    return found.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


@operator("GatherElements")
def gather_elements(x: torch.Tensor, indices: torch.Tensor, *, axis: int = 0) -> torch.Tensor:
    """One element for each index."""
    return torch.gather(x, axis, _wrapped(indices, x.shape[axis]))


@operator("GatherND")
def gather_nd(x: torch.Tensor, indices: torch.Tensor, *, batch_dims: int = 0) -> torch.Tensor:
    """Slices by tuples of indices."""
    batch = [
        torch.arange(x.shape[axis]).reshape([-1] + [1] * (indices.dim() - 2 - axis))
        for axis in range(batch_dims)
    ]
    return x[(*batch, *indices.unbind(-1))]


@operator("ScatterND")
def scatter_nd(
    x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, *, reduction: str = "none"
) -> torch.Tensor:
    """Slices replaced, or added to."""
    _plain_reduction("ScatterND", reduction)
    return torch.index_put(x, indices.unbind(-1), updates, accumulate=reduction == "add")


@operator("ScatterElements")
def scatter_elements(
    x: torch.Tensor,
    indices: torch.Tensor,
    updates: torch.Tensor,
    *,
    axis: int = 0,
    reduction: str = "none",
) -> torch.Tensor:
    """Elements replaced, or added to."""
    _plain_reduction("ScatterElements", reduction)
    where = _wrapped(indices, x.shape[axis])
    if reduction == "add":
        return torch.scatter_add(x, axis, where, updates)
    return torch.scatter(x, axis, where, updates)


def _plain_reduction(name: str, reduction: str) -> None:
    if reduction not in ("none", "add"):
        raise EdgekitError(f"{name} with reduction {reduction!r} is not read by edgekit.")


def _wrapped(indices: torch.Tensor, length: Any) -> torch.Tensor:
    return torch.where(indices < 0, indices + length, indices)


@operator("OneHot", known="depth")
def one_hot(
    indices: torch.Tensor, depth: Known, values: torch.Tensor, *, axis: int = -1
) -> torch.Tensor:
    """``values[1]`` at the index, ``values[0]`` elsewhere; outside of the range nowhere."""
    count = int(depth.item())
    where = _wrapped(indices.to(torch.int64), count).unsqueeze(axis)
    shape = [1] * where.dim()
    shape[axis] = count
    hot = where == torch.arange(count).reshape(shape)
    return torch.where(hot, values[1], values[0])


@operator("NonZero")
def nonzero(x: torch.Tensor) -> torch.Tensor:
    """Of known values alone (see ``known``): the size of the result depends on data."""
    raise EdgekitError(
        "NonZero of data gives a tensor of an unknown size.",
        "Engines need fixed sizes.",
        "Export the model without it; torch.where and masks do the same with fixed sizes.",
    )

"""Operators over whole dimensions: sums, maxima, softmax, order, matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from edgekit.families.onnx_graph.shaping import places
from edgekit.families.onnx_graph.table import Known, enter, operator

Reduction = Callable[[torch.Tensor, list[int], bool], torch.Tensor]


def _product(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceL1": lambda x, axes, keep: torch.sum(torch.abs(x), axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.sqrt(torch.sum(x * x, axes, keep)),
    "ReduceLogSum": lambda x, axes, keep: torch.log(torch.sum(x, axes, keep)),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keep),
    "ReduceMax": lambda x, axes, keep: torch.amax(x, axes, keep),
    "ReduceMean": lambda x, axes, keep: torch.mean(x, axes, keep),
    "ReduceMin": lambda x, axes, keep: torch.amin(x, axes, keep),
    "ReduceProd": _product,
    "ReduceSum": lambda x, axes, keep: torch.sum(x, axes, keep, dtype=x.dtype),
    "ReduceSumSquare": lambda x, axes, keep: torch.sum(x * x, axes, keep, dtype=x.dtype),
}


def _enter_reduction(name: str, function: Reduction) -> None:
    def run(
        x: torch.Tensor, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> torch.Tensor:
        empty = axes is None or np.asarray(axes).size == 0
        if empty and noop_with_empty_axes:
            return x
        return function(x, places(None if empty else axes, x.dim()), bool(keepdims))

    enter(name, run, known="axes")


for _name, _function in _REDUCTIONS.items():
    _enter_reduction(_name, _function)


@operator("ArgMax")
def argmax(
    x: torch.Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> torch.Tensor:
    """The first place of the greatest element, or the last."""
    if select_last_index:
        return x.shape[axis] - 1 - torch.argmax(x.flip(axis), axis, bool(keepdims))
    return torch.argmax(x, axis, bool(keepdims))


@operator("ArgMin")
def argmin(
    x: torch.Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> torch.Tensor:
    """The first place of the least element, or the last."""
    if select_last_index:
        return x.shape[axis] - 1 - torch.argmin(x.flip(axis), axis, bool(keepdims))
    return torch.argmin(x, axis, bool(keepdims))


@operator("Softmax")
def softmax(x: torch.Tensor, *, axis: int | None = None, opset: int) -> torch.Tensor:
    """Along one dimension; before opset 13, over all from it on."""
    return _along(torch.softmax, x, axis, opset)


@operator("LogSoftmax")
def log_softmax(x: torch.Tensor, *, axis: int | None = None, opset: int) -> torch.Tensor:
    """Along one dimension; before opset 13, over all from it on."""
    return _along(torch.log_softmax, x, axis, opset)


def _along(function: Any, x: torch.Tensor, axis: int | None, opset: int) -> torch.Tensor:
    old = opset < 13
    place = (1 if old else -1) if axis is None else axis
    if not old or place % x.dim() == x.dim() - 1:
        return function(x, place)  # type: ignore[no-any-return]
    flat = function(torch.flatten(x, place % x.dim()), -1)
    return flat.reshape(x.shape)  # type: ignore[no-any-return]


@operator("TopK", known="k")
def top_k(
    x: torch.Tensor, k: Any, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and their places."""
    values, indices = torch.topk(x, int(np.asarray(k).item()), axis, bool(largest), bool(sorted))
    return values, indices


@operator("CumSum", known="axis")
def cumulative_sum(
    x: torch.Tensor, axis: Known, *, exclusive: int = 0, reverse: int = 0
) -> torch.Tensor:
    """From either end, with the element itself or without."""
    place = int(axis.item())
    turned = x.flip(place) if reverse else x
    sums = torch.cumsum(turned, place, dtype=x.dtype)
    if exclusive:
        sums = sums - turned
    return sums.flip(place) if reverse else sums


@operator("Einsum")
def einsum(*values: torch.Tensor, equation: str) -> torch.Tensor:
    """A sum of products, by the names of dimensions."""
    return torch.einsum(equation, *values)


@operator("MatMul")
def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of two tensors; one with a constant matrix is a layer (see ``layers``)."""
    return torch.matmul(a, b)


@operator("Gemm")
def gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> torch.Tensor:
    """alpha A B + beta C of two tensors; one with a constant B is a layer."""
    product = torch.matmul(a.t() if transA else a, b.t() if transB else b)
    product = product if alpha == 1 else product * alpha
    if c is None:
        return product
    return product + (c if beta == 1 else c * beta)

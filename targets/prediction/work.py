"""Work: the arithmetic of one operator, from the shapes of what it reads and gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.fx import Node

#: Steps of a recurrence that are taken together as products (``edgekit/operators``).
CHUNK = 64


def operator_name(node: Any) -> str:
    """``softmax`` for ``aten.softmax.int``."""
    name = str(getattr(node, "target", ""))
    if "getitem" in name:
        return "getitem"
    parts = name.split(".")
    return (parts[1] if len(parts) > 1 else parts[0]).removesuffix("_")


def value(node: Any) -> Any:
    """What stands for a node's result; the first, where it has several."""
    found = node.meta.get("val") if hasattr(node, "meta") else None
    return found[0] if isinstance(found, tuple | list) and found else found


def size(node: Any) -> float:
    """Elements of all that a node gives."""
    found = node.meta.get("val")
    parts = found if isinstance(found, tuple | list) else (found,)
    return float(sum(int(v.numel()) for v in parts if isinstance(v, torch.Tensor)))


def is_product(node: Node) -> bool:
    """Whether a convolution reads every place once: 1x1, or of patches that do not overlap."""
    name = operator_name(node)
    if not name.startswith("conv") or "transpose" in name:
        return False
    kernel = tuple(value(node.args[1]).shape[2:])
    stride: Any = node.args[3] if len(node.args) > 3 else 1
    steps = tuple(stride) if isinstance(stride, list | tuple) else (stride,)
    steps = steps * (len(kernel) // len(steps))
    groups = node.args[6] if len(node.args) > 6 else 1
    return bool(groups == 1 and (kernel == steps or set(kernel) == {1}))


def work_of(kind: str, nodes: Sequence[Node], weight: torch.Tensor | None) -> dict[str, Any]:
    """``flops``, ``rows``, ``columns``, ``depth``, ``scores`` and ``as_product`` of a group."""
    name = operator_name(nodes[0])
    if kind in ("conv", "depthwise") or name.startswith("conv"):
        return _convolution(nodes[0])
    if name == "scaled_dot_product_attention":
        return _attention(nodes[0], 1.0)
    if name == "causal_attention":
        return _attention(nodes[0], 0.5)
    if kind == "attention":
        return _written_out(nodes)
    if kind == "product":
        return _product(nodes[0], weight)
    if kind == "scan":
        return _SCANS.get(name, _linear_scan)(nodes[0])
    return {"flops": size(nodes[0]), "rows": size(nodes[0]), "columns": 1.0, "depth": 1.0}


def _matrix(rows: float, columns: float, depth: float, **more: Any) -> dict[str, Any]:
    sizes = {"rows": float(rows), "columns": float(columns), "depth": float(depth)}
    return {"flops": 2.0 * rows * columns * depth, **sizes, **more}


def _convolution(node: Node) -> dict[str, Any]:
    kernel, made, read = value(node.args[1]), value(node), value(node.args[0])
    transposed = "transpose" in operator_name(node)
    places = (read if transposed else made).shape
    rows = places[0] * prod(places[2:])
    groups: Any = node.args[6] if len(node.args) > 6 and not transposed else 1
    depth = kernel.shape[0] if transposed else prod(kernel.shape[1:])
    columns = prod(kernel.shape[1:]) if transposed else kernel.shape[0]
    found = _matrix(rows, columns, depth, as_product=is_product(node))
    # Groups are products beside each other, each with its share of the columns.
    return {**found, "rows": found["rows"] * groups, "columns": found["columns"] / groups}


def _product(node: Node, weight: torch.Tensor | None) -> dict[str, Any]:
    made = value(node)
    total, columns = float(made.numel()), float(made.shape[-1]) if made.dim() else 1.0
    name = operator_name(node)
    if name == "linear" or (weight is not None and name != "addmm"):
        depth = value(node.args[0]).shape[-1] if name != "einsum" else weight_depth(weight, columns)
    elif name in ("addmm", "baddbmm"):
        depth = value(node.args[1]).shape[-1]
    elif name == "einsum":
        operands: Any = node.args[1]
        first, second = (float(value(operand).numel()) for operand in operands[:2])
        depth = max((first * second / max(total, 1.0)) ** 0.5, 1.0)
    else:
        depth = value(node.args[0]).shape[-1]
    return _matrix(total / max(columns, 1.0), columns, depth)


def weight_depth(weight: torch.Tensor | None, columns: float) -> float:
    """Terms of a sum, of a matrix with so many columns."""
    return 1.0 if weight is None else max(weight.numel() / columns, 1.0)


def _attention(node: Node, share: float) -> dict[str, Any]:
    q, k, v = (value(argument) for argument in node.args[:3])
    rows, depth = float(prod(q.shape[:-1])), float(k.shape[-2])
    found = _matrix(rows, (q.shape[-1] + v.shape[-1]) * share, depth, scores=rows * depth)
    return found


def _written_out(nodes: Sequence[Node]) -> dict[str, Any]:
    """Attention as a product, a softmax and a product."""
    products = [n for n in nodes if operator_name(n) in ("matmul", "bmm", "baddbmm", "mm")]
    parts = [_product(node, None) for node in products]
    (softmax,) = (value(n) for n in nodes if operator_name(n) in ("softmax", "_softmax"))
    scores, depth = float(softmax.numel()), float(softmax.shape[-1])
    flops = sum(part["flops"] for part in parts)
    rows = scores / max(depth, 1.0)
    columns = flops / (2 * max(scores, 1.0))
    return {"flops": flops, "rows": rows, "columns": columns, "depth": depth, "scores": scores}


def _mamba(node: Node) -> dict[str, Any]:
    (b, length, d), n = value(node.args[0]).shape, value(node.args[2]).shape[1]
    states = float(b * length * d * n)
    return _scan(9 * states, b * d * n, length, states)


def _linear_scan(node: Node) -> dict[str, Any]:
    shape = value(node.args[0]).shape
    states = float(prod(shape))
    return _scan(2 * states, states / max(shape[1], 1), shape[1], states)


def _ssd(node: Node) -> dict[str, Any]:
    (b, length, h, p), n = value(node.args[0]).shape, value(node.args[2]).shape[-1]
    chunk = min(CHUNK, length)
    flops = 2.0 * b * length * h * (chunk * (n + p) + 2 * n * p)
    return _scan(flops, b * h * n * p, length, float(b * h * length * chunk))


def _gated_delta(node: Node) -> dict[str, Any]:
    b, length, h, k = value(node.args[0]).shape
    v, chunk = value(node.args[2]).shape[-1], min(CHUNK, length)
    flops = 2.0 * b * length * h * (chunk * (2 * k + 2 * v) + 3 * k * v)
    return _scan(flops, b * h * k * v, length, float(b * h * length * chunk * 2))


def _lmu(node: Node) -> dict[str, Any]:
    (b, length, d), n = value(node.args[0]).shape, value(node.args[1]).shape[0]
    chunk = min(CHUNK // 2, length)
    flops = 2.0 * b * length * d * n * (chunk + n)
    return _scan(flops, b * d * n, length, float(b * length * d * n))


def _scan(flops: float, state: float, length: int, held: float) -> dict[str, Any]:
    sizes = {"rows": float(state), "columns": 1.0, "depth": float(length)}
    return {"flops": flops, **sizes, "scores": held}


_SCANS: dict[str, Callable[[Node], dict[str, Any]]] = {
    "mamba_scan": _mamba,
    "ssd": _ssd,
    "gated_delta": _gated_delta,
    "lmu": _lmu,
}

"""attention: scaled dot-product attention written out.

    softmax(s Q K^T + M) V,  s = 1 / sqrt(d) unless given

as product, add, softmax, product, so that precision can be set inside it: the products run
in fp16 and the softmax in fp32, a form that TensorRT still fuses into one kernel.
A causal mask and grouped keys are written out too. Attention over a dynamic length is left
whole: the ONNX exporter decomposes it by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph

_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


Change = Callable[[str, "Node"], "Node"]


def _unchanged(name: str, operand: Node) -> Node:
    return operand


def rewrite(graph: Graph) -> Graph:
    """The graph with every attention of static length written out."""
    from edgekit.edit import Editor

    editor = Editor(graph)
    for node in editor.calls("aten.scaled_dot_product_attention.default"):
        if is_static(node):
            editor.replace(node, write_out(editor, node))
    return editor.done()


def is_static(node: Node) -> bool:
    """Whether an attention's lengths are known."""
    return all(isinstance(size, int) for size in _lengths(node))


def _lengths(node: Node) -> tuple[Any, Any]:
    query, key = _arguments(node)["query"], _arguments(node)["key"]
    return query.meta["val"].shape[-2], key.meta["val"].shape[-2]


def _arguments(node: Node) -> dict[str, Any]:
    return {**dict(zip(_NAMES, node.args, strict=False)), **node.kwargs}


def write_out(editor: Editor, node: Node, changed: Change = _unchanged) -> Node:
    """The attention as products and a softmax.

    Args:
        changed: gives what takes the place of a product's operand, by the operand's name:
            ``query`` (scaled), ``key``, ``value`` or ``probabilities``.
    """
    import torch

    aten = torch.ops.aten
    given = _arguments(node)
    query, key, value = given["query"], given["key"], given["value"]
    scale = scale_of(node)
    if given.get("enable_gqa"):
        groups = query.meta["val"].shape[-3] // key.meta["val"].shape[-3]
        key, value = (
            editor.call(aten.repeat_interleave.self_int, x, groups, -3, like=node)
            for x in (key, value)
        )
    scaled = changed("query", editor.call(aten.mul.Tensor, query, scale, like=node))
    turned = editor.call(aten.transpose.int, changed("key", key), -2, -1, like=node)
    scores = editor.call(aten.matmul.default, scaled, turned, like=node)
    mask = _mask(editor, node, given)
    if mask is not None:
        scores = editor.call(aten.add.Tensor, scores, mask, like=node)
    weights = editor.call(aten.softmax.int, scores, -1, like=node)
    weights, value = changed("probabilities", weights), changed("value", value)
    return editor.call(aten.matmul.default, weights, value, like=node)


def scale_of(node: Node) -> float:
    """What an attention multiplies its query by."""
    given = _arguments(node)
    return float(given.get("scale") or 1 / math.sqrt(given["query"].meta["val"].shape[-1]))


def _mask(editor: Editor, node: Node, given: dict[str, Any]) -> Node | None:
    """The additive mask: given, made of a boolean one, or causal."""
    import torch

    if given.get("is_causal"):
        rows, columns = _lengths(node)
        above = torch.ones(rows, columns, dtype=torch.bool).triu(1)
        mask = torch.zeros(rows, columns).masked_fill(above, float("-inf"))
        return editor.buffer(f"causal_mask_{rows}_{columns}", mask)
    given_mask: Any = given.get("attn_mask")
    if given_mask is None or given_mask.meta["val"].dtype != torch.bool:
        return given_mask  # type: ignore[no-any-return]
    zero = editor.buffer("mask_keep", torch.zeros(()))
    drop = editor.buffer("mask_drop", torch.tensor(float("-inf")))
    return editor.call(torch.ops.aten.where.self, given_mask, zero, drop, like=node)

"""composites: operators that are two or three others, as those.

    addcmul(x, a, b, v) = x + v a b
    clamp(x, low, high) = min(max(x, low), high)   for bounds that are tensors

Core ML has neither, and torch's ONNX exporter can lose the second's bounds: where they are
constant numbers they become plain ones, and an infinite one is dropped.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph


def rewrite(graph: Graph) -> Graph:
    """The graph with these operators written out."""
    from edgekit.edit import Editor

    editor = Editor(graph)
    for node in editor.calls("aten.addcmul.default"):
        editor.replace(node, _sum(editor, node))
    for node in editor.calls("aten.clamp.Tensor"):
        editor.replace(node, _bounded(editor, node))
    return editor.done()


def _sum(editor: Editor, node: Node) -> Node:
    import torch

    aten = torch.ops.aten
    x, a, b = node.args
    factor: Any = node.kwargs.get("value", 1)
    product = editor.call(aten.mul.Tensor, a, b, like=node)
    if factor != 1:
        product = editor.call(aten.mul.Tensor, product, factor, like=node)
    return editor.call(aten.add.Tensor, x, product, like=node)


def _bounded(editor: Editor, node: Node) -> Node:
    result: Any
    result, *bounds = (*node.args, None, None)[:3]
    low, high = (node.kwargs.get(n, b) for n, b in zip(("min", "max"), bounds, strict=True))
    result = _bounded_by(editor, node, result, low, least=True)
    result = _bounded_by(editor, node, result, high, least=False)
    return result  # type: ignore[no-any-return]


def _bounded_by(editor: Editor, node: Node, x: Any, bound: Any, least: bool) -> Any:
    """``x`` with one bound: a constant number becomes one, and an infinite one is none."""
    import torch

    aten = torch.ops.aten
    stored = editor.tensor(bound)
    number = stored.item() if stored is not None and stored.dim() == 0 else None
    if bound is None or number == (-math.inf if least else math.inf):
        return x
    if number is not None:
        limits = (number, None) if least else (None, number)
        return editor.call(aten.clamp.default, x, *limits, like=node)
    operator = aten.maximum.default if least else aten.minimum.default
    return editor.call(operator, x, bound, like=node)

"""scale_first: scale before a product, not after it.

    s (A B) = (s A) B  for a number |s| < 1

An attention's scores can exceed the 65504 that float16 holds before they are scaled, and not
after; ``A``, the queries, is also smaller than the scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph

PRODUCTS = ("aten.matmul.default", "aten.bmm.default")


def rewrite(graph: Graph) -> Graph:
    """The graph with every product that only feeds a shrinking scale taking it first."""
    from edgekit.edit import Editor

    editor = Editor(graph)
    for node in editor.calls("aten.mul.Tensor", "aten.div.Tensor"):
        product: Any = node.args[0]
        factor = _factor(editor, node)
        follows = str(getattr(product, "target", "")) in PRODUCTS and len(product.users) == 1
        if follows and factor is not None and abs(factor) < 1:
            editor.replace(node, _scaled(editor, product, factor))
            editor.fx.erase_node(product)
    return editor.done()


def _factor(editor: Editor, node: Node) -> float | None:
    """The number that a call multiplies with, or None."""
    number: Any = node.args[1]
    stored = editor.tensor(number)
    if stored is not None and stored.numel() == 1 and stored.dim() == 0:
        number = stored.item()
    if not isinstance(number, int | float) or number == 0:
        return None
    return 1 / number if str(node.target) == "aten.div.Tensor" else number


def _scaled(editor: Editor, product: Node, factor: float) -> Node:
    import torch

    left, right = product.args
    scaled = editor.call(torch.ops.aten.mul.Tensor, left, factor, like=product)
    return editor.call(product.target, scaled, right, like=product)

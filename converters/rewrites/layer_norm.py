"""layer_norm: layer normalisation written out, for runtimes that have no operator for it.

y = (x - mean) / sqrt(var + e) * w + b,  mean and var over the normalised axes
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph


def rewrite(graph: Graph) -> Graph:
    """The graph with every layer normalisation written out."""
    from edgekit.edit import Editor

    editor = Editor(graph)
    for node in editor.calls("aten.layer_norm.default"):
        editor.replace(node, _written_out(editor, node))
    return editor.done()


def _written_out(editor: Editor, node: Node) -> Node:
    import torch

    from edgekit.edit import IN_FLOAT32

    aten = torch.ops.aten
    source: Any = node.args[0]
    shape: Any = node.args[1]
    given: list[Any] = list(node.args[2:5])
    weight, bias, epsilon = given + [None, None, 1e-5][len(given) :]
    node.meta[IN_FLOAT32] = True  # what stands beside it inherits this
    axes = list(range(-len(shape), 0))
    mean = editor.call(aten.mean.dim, source, axes, True, like=node)
    centred = editor.call(aten.sub.Tensor, source, mean, like=node)
    square = editor.call(aten.mul.Tensor, centred, centred, like=node)
    variance = editor.call(aten.mean.dim, square, axes, True, like=node)
    shifted = editor.call(aten.add.Tensor, variance, epsilon, like=node)
    deviation = editor.call(aten.sqrt.default, shifted, like=node)
    result = editor.call(aten.div.Tensor, centred, deviation, like=node)
    if weight is not None:
        result = editor.call(aten.mul.Tensor, result, weight, like=node)
    if bias is not None:
        result = editor.call(aten.add.Tensor, result, bias, like=node)
    return result

"""batch_norm: fold a batch norm in evaluation mode into the convolution or linear before it.

    y = g (W x + b - m) / sqrt(v + e) + h  =  (a W) x + a (b - m) + h,  a = g / sqrt(v + e)

exact up to rounding; only where the layer feeds nothing else. A part of a convolution's positions
may be cut out between the two, and a linear of sequences be transposed, as its channels are last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph

CONVOLUTIONS = ("aten.conv2d.default", "aten.conv1d.default", "aten.conv2d.padding")


def rewrite(graph: Graph) -> Graph:
    """The graph with every batch norm that follows such a layer folded into it."""
    from edgekit.edit import Editor

    editor = Editor(graph)
    for norm in editor.calls("aten._native_batch_norm_legit_no_training.default"):
        layer = _before(norm)
        # The operator also returns statistics, which nothing reads in evaluation mode.
        if layer is not None and len(norm.users) == 1:
            _fold(editor, layer, norm)
    return editor.done()


def _before(norm: Node) -> Node | None:
    """The layer whose channels a norm scales, if nothing else reads it."""
    source: Any = norm.args[0]
    target, layers = str(source.target), list(CONVOLUTIONS)
    if len(source.users) > 1:
        return None
    if target == "aten.slice.Tensor" and source.args[1] >= 2:
        source = source.args[0]
    elif target == "aten.transpose.int" and source.args[1:] == (1, 2) and _rank(source) == 3:
        source, layers = source.args[0], ["aten.linear.default"]
    return source if str(source.target) in layers and len(source.users) == 1 else None


def _rank(node: Node) -> int:
    return len(node.meta["val"].shape)


def _fold(editor: Editor, layer: Node, norm: Node) -> None:
    import torch

    weight, bias = (_tensor(editor, layer, index) for index in (1, 2))
    gain, shift, mean, variance = (_tensor(editor, norm, index) for index in (1, 2, 3, 4))
    if weight is None or mean is None or variance is None:
        return
    epsilon = float(norm.args[6])  # type: ignore[arg-type]
    factor = (variance.double() + epsilon).rsqrt()
    if gain is not None:
        factor = factor * gain.double()
    offset = ((0 if bias is None else bias.double()) - mean.double()) * factor
    if shift is not None:
        offset = offset + shift.double()
    scaled = weight.double() * factor.reshape(-1, *[1] * (weight.dim() - 1))
    holder: Any = layer.args[1]
    name = editor.tensor_name(holder)
    dtype = weight.dtype
    rest = list(layer.args[3:])
    stored = editor.buffer(f"{name}_folded_{norm.name}", scaled.to(dtype))
    moved = editor.buffer(f"{name}_folded_bias_{norm.name}", torch.as_tensor(offset).to(dtype))
    layer.args = (layer.args[0], stored, moved, *rest)
    source: Any = norm.args[0]
    (first,) = norm.users
    editor.replace(first, source)


def _tensor(editor: Editor, node: Node, index: int) -> torch.Tensor | None:
    stored = editor.tensor(node.args[index]) if len(node.args) > index else None
    return None if stored is None else stored.detach()

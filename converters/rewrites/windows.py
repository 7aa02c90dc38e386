"""windows: sliding windows, and their sum, in operators that every backend has.

1. ``x.unfold(axis, size, step)``, windows along one axis: where they begin is constant, so a
   gather and a reshape make them. Core ML has no unfold.
2. ``fold`` (``col2im``), the sum of overlapping blocks: a transposed convolution whose kernel
   for one place of a block is 1 in that place and 0 elsewhere. TensorRT has no Col2Im.

Both are exact: every product is with 0 or 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph


def rewrite(graph: Graph) -> Graph:
    """The graph with every unfold (along an axis of known length) and fold written out."""
    from edgekit.edit import Editor

    editor = Editor(graph)
    for node in editor.calls("aten.unfold.default"):
        source, axis, *_ = _arguments(node)
        if isinstance(source.meta["val"].shape[axis], int):
            _replace(editor, node, _gathered(editor, node))
    for node in editor.calls("aten.col2im.default"):
        _replace(editor, node, _summed(editor, node))
    return editor.done()


def _replace(editor: Editor, old: Node, new: Node) -> None:
    new.meta["val"] = old.meta["val"]  # for a window of windows, which reads its shape
    editor.replace(old, new)


def _arguments(node: Node) -> tuple[Any, ...]:
    return tuple(node.args)


def _gathered(editor: Editor, node: Node) -> Node:
    """Case 1: (..., length, ...) to (..., windows, ..., size)."""
    import torch

    aten = torch.ops.aten
    source, axis, size, step = _arguments(node)
    shape = [s if isinstance(s, int) else -1 for s in source.meta["val"].shape]
    axis %= len(shape)
    first = torch.arange(0, shape[axis] - size + 1, step)
    places = (first[:, None] + torch.arange(size)).flatten()
    indices = editor.buffer(f"windows_{shape[axis]}_{size}_{step}", places)
    taken = editor.call(aten.index_select.default, source, axis, indices, like=node)
    split = [*shape[:axis], len(first), size, *shape[axis + 1 :]]
    blocks = editor.call(aten.reshape.default, taken, split, like=node)
    order = [*range(axis + 1), *range(axis + 2, len(split)), axis + 1]
    return editor.call(aten.permute.default, blocks, order, like=node)


def _summed(editor: Editor, node: Node) -> Node:
    """Case 2: (batch, channels x block, places) to (batch, channels, height, width)."""
    import torch

    aten = torch.ops.aten
    source, size, kernel, dilation, padding, stride = _arguments(node)
    block = math.prod(kernel)
    # How many blocks fit, and what is left over, along each axis.
    room = [size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1 for i in (0, 1)]
    blocks = [room[i] // stride[i] + 1 for i in (0, 1)]
    left = [room[i] % stride[i] for i in (0, 1)]
    ones = torch.eye(block).reshape(block, 1, *kernel)
    weight = editor.buffer(f"fold_{kernel[0]}_{kernel[1]}", ones)
    channels = source.meta["val"].shape[-2] // block
    images = editor.call(aten.reshape.default, source, [-1, block, *blocks], like=node)
    options = (None, stride, padding, left, 1, dilation)
    summed = editor.call(aten.conv_transpose2d.input, images, weight, *options, like=node)
    return editor.call(aten.reshape.default, summed, [-1, channels, *size], like=node)

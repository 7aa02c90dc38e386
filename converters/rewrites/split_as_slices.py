"""split_as_slices: the parts of a split, each as a slice.

    split(x, [a, b, ...])[i] = x[a + b + ... : ... + size_i]

ONNX's converter to older opsets has no way for a Split of opset 18.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph

_SPLITS = ("aten.split_with_sizes.default", "aten.split.Tensor", "aten.chunk.default")


def rewrite(graph: Graph) -> Graph:
    """The graph without splits along sizes that are known."""
    from edgekit.edit import Editor

    editor = Editor(graph)
    for node in editor.calls(*_SPLITS):
        x: Any = node.args[0]
        axis: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
        if isinstance(x.meta["val"].shape[axis], int):
            _slice(editor, node, x, axis)
    return editor.done()


def _slice(editor: Editor, node: Node, x: Node, axis: int) -> None:
    import torch

    sizes = [int(part.shape[axis]) for part in node.meta["val"]]
    starts = [0, *accumulate(sizes)]
    parts = [
        editor.call(torch.ops.aten.slice.Tensor, x, axis, start, start + size, like=node)
        for start, size in zip(starts, sizes, strict=False)
    ]
    editor.replace_results(node, parts)

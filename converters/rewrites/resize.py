"""resize: a bicubic or bilinear resize between fixed sizes as two constant products.

    resize(X) = A X B^T,  A (height out x height in), B (width out x width in)

A resize is linear and separable, so A and B are the resize of the identity. Core ML has no
bicubic resize, and ONNX Runtime's takes 38% of CrossViT's time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph

#: operator -> (mode, antialias)
RESIZES = {
    "aten.upsample_bicubic2d.vec": ("bicubic", False),
    "aten._upsample_bicubic2d_aa.vec": ("bicubic", True),
    "aten._upsample_bilinear2d_aa.vec": ("bilinear", True),
}


def rewrite(graph: Graph) -> Graph:
    """The graph with every resize between fixed sizes as two products."""
    from edgekit.edit import Editor

    editor = Editor(graph)
    for node in editor.calls(*RESIZES):
        source: Any = node.args[0]
        sizes = (*source.meta["val"].shape[-2:], *node.meta["val"].shape[-2:])
        if all(isinstance(size, int) for size in sizes):
            editor.replace(node, _products(editor, node, source))
    return editor.done()


def _products(editor: Editor, node: Node, source: Node) -> Node:
    import torch

    matmul = torch.ops.aten.matmul.default
    mode, antialias = RESIZES[str(node.target)]
    corners = bool(node.args[2])
    scales: Any = node.args[3] if len(node.args) > 3 else None
    dtype = node.meta["val"].dtype
    matrices = []
    for axis in (0, 1):
        before = int(source.meta["val"].shape[axis - 2])
        after = int(node.meta["val"].shape[axis - 2])
        scale = None if scales is None else float(scales[axis])
        matrices.append(_matrix(before, after, mode, antialias, corners, scale).to(dtype))
    rows = editor.buffer(f"{node.name}_rows", matrices[0])
    columns = editor.buffer(f"{node.name}_columns", matrices[1].T)
    return editor.call(matmul, editor.call(matmul, rows, source, like=node), columns, like=node)


def _matrix(
    before: int, after: int, mode: str, antialias: bool, corners: bool, scale: float | None
) -> torch.Tensor:
    """The (after, before) matrix: one column is the resize of one unit vector."""
    import torch
    import torch.nn.functional as F

    # Four equal columns: torch's antialiased resize of a single one is wrong.
    identity = torch.eye(before, dtype=torch.float64).reshape(before, 1, before, 1)
    size = {"size": (after, 4)} if scale is None else {"scale_factor": (scale, 1.0)}
    resized = F.interpolate(
        identity.expand(-1, -1, -1, 4).contiguous(),
        mode=mode,
        antialias=antialias,
        align_corners=corners,
        recompute_scale_factor=None,
        **size,
    )
    return resized[..., 0].reshape(before, after).T.contiguous()

"""conv_as_linear: a convolution of patches that do not overlap as a linear on their pixels.

With kernel = stride (k, l), no padding, one group:

    y[o, i, j] = sum_(c, a, b) W[o, c, a, b] x[c, k i + a, l j + b] + bias[o]

so the image is cut into patches of C k l values, and y = patches W'^T + bias, W' = W as
(out, C k l). A 1x1 convolution is the case k = l = 1. Runtimes without a fast integer
convolution have a fast integer product. In float it gains nothing: only quantized graphs use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph

_DEFAULTS: dict[str, Any] = {
    "bias": None,
    "stride": [1, 1],
    "padding": [0, 0],
    "dilation": [1, 1],
    "groups": 1,
}


def rewrite(graph: Graph) -> Graph:
    """The graph with each such convolution as a linear."""
    from edgekit.edit import Editor

    editor = Editor(graph)
    for node in editor.calls("aten.conv2d.default", "aten.conv2d.padding"):
        if editor.tensor(node.args[1]) is not None and _cuts_patches(node):
            editor.replace(node, _linear(editor, node))
    return editor.done()


def _cuts_patches(node: Node) -> bool:
    x: Any = node.args[0]
    weight: Any = node.args[1]
    given: dict[str, Any] = dict(zip(_DEFAULTS, node.args[2:], strict=False))
    found = {**_DEFAULTS, **given}
    kernel = list(weight.meta["val"].shape[2:])
    sizes = x.meta["val"].shape[2:]
    return bool(
        list(found["stride"]) == kernel
        and found["padding"] in ([0, 0], "valid")
        and found["groups"] == 1
        and all(isinstance(n, int) and n % k == 0 for n, k in zip(sizes, kernel, strict=True))
    )


def _linear(editor: Editor, node: Node) -> Node:
    import torch

    aten = torch.ops.aten
    x: Any = node.args[0]
    holder: Any = node.args[1]
    weight = editor.tensor(holder)
    if weight is None:
        raise TypeError(f"{node.name} has no constant weight")
    batch, channels, height, width = x.meta["val"].shape
    k, l = weight.shape[2:]  # noqa: E741 - as in the equation
    rows, columns = height // k, width // l

    def call(operator: Any, *args: Any) -> Node:
        return editor.call(operator, *args, like=node)

    patches = call(aten.permute.default, x, [0, 2, 3, 1])
    if k * l > 1:
        size = -1 if not isinstance(batch, int) else batch
        cut = call(aten.reshape.default, x, [size, channels, rows, k, columns, l])
        moved = call(aten.permute.default, cut, [0, 2, 4, 1, 3, 5])
        patches = call(aten.reshape.default, moved, [size, rows, columns, channels * k * l])
    flat = editor.buffer(f"{editor.tensor_name(holder)}_rows", weight.detach().flatten(1))
    bias = node.args[2] if len(node.args) > 2 else None
    product = call(aten.linear.default, patches, flat, bias)
    made = call(aten.permute.default, product, [0, 3, 1, 2])
    made.meta["val"] = node.meta["val"]  # the next convolution asks for its sizes
    return made

"""angles: what sine and cosine are taken of is computed in float32.

    sin(t f),  t up to 1000

Half precision has 11 bits: of an angle of 1000 radians it keeps the nearest half. Embeddings of
timesteps and positions are such angles. Nothing but marks is written: in float32 the graph is as
it was, and in half precision these few products stay out of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.model import Graph

#: Operators through which an angle is followed to where it comes from.
ARITHMETIC = frozenset(
    f"aten.{name}"
    for name in "mul.Tensor add.Tensor sub.Tensor div.Tensor outer.default einsum.default "
    "_to_copy.default to.dtype reshape.default unsqueeze.default expand.default slice.Tensor "
    "select.int transpose.int permute.default stack.default cat.default".split()
)


def rewrite(graph: Graph) -> Graph:
    """The graph with every angle marked ``IN_FLOAT32``."""
    from edgekit.edit import IN_FLOAT32, Editor

    editor = Editor(graph)
    waiting: list[Node] = []
    for node in editor.calls("aten.sin.default", "aten.cos.default"):
        waiting += node.all_input_nodes
    while waiting:
        node = waiting.pop()
        if str(node.target) in ARITHMETIC and IN_FLOAT32 not in node.meta:
            node.meta[IN_FLOAT32] = True
            waiting += node.all_input_nodes
    return editor.done()

"""Lengths: how long a graph's sequences can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.model import Graph

#: A sequence of this many steps at most is computed whole, whatever its length.
PIECE = 256


def varies(size: Any) -> bool:
    """Whether a size is a symbol, in a trace."""
    return not isinstance(size, int)


def longest(graph: Graph, size: Any) -> int | None:
    """The most steps that a form without a loop has to hold for; None if they are too many.

    Args:
        size: a dimension of a value in the graph: a number, or a symbol. A number is its own
            answer; a symbol must be that of a Dim, with a ``most`` of ``PIECE`` or less.
    """
    if not varies(size):
        return int(size)
    named = graph.exported.graph_signature.user_inputs
    values = {
        node.name: node.meta["val"] for node in graph.exported.graph.find_nodes(op="placeholder")
    }
    for name, spec in zip(named, graph.inputs, strict=True):
        for found, dim in zip(values[name].shape, spec.shape, strict=True):
            if not isinstance(dim, int) and str(found) == str(size) and dim.most <= PIECE:
                return dim.most
    return None

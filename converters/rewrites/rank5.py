"""rank5: no tensor of more than five axes, which is all that Core ML takes.

A reshape does not move elements, so a tensor of rank 6 is carried as any tensor of a lower
rank with the same elements in the same order, and each operator on it works on merged axes:

1. ``permute``: axes that stay neighbours are one axis, axes of size 1 are none;
   a permutation of more than five groups is a chain of swaps of two neighbours,
   ``(p, a, b, q) -> (p, b, a, q)``.
2. Operators along one axis (``unbind``, ``amax``, ``softmax``, ``linear``, ...): the others
   are merged from the left.
3. Operators on each element: two axes are merged where every operand has both, or neither.
4. Reshapes and copies: nothing.

Operators that are none of these are left as they are.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph

LIMIT = 5
RESHAPES = (
    "aten.view.default aten._unsafe_view.default aten.reshape.default aten.flatten.using_ints "
    "aten.unsqueeze.default aten.squeeze.dim aten.squeeze.dims aten.clone.default "
    "aten.contiguous.default aten.alias.default"
).split()
#: operator -> whether the axis stays in the result
ALONG_ONE = {
    "aten.amax.default": False,
    "aten.amin.default": False,
    "aten.mean.dim": False,
    "aten.select.int": False,
    "aten.softmax.int": True,
    "aten.sum.dim_IntList": False,
}
Shape = tuple[Any, ...]


def rewrite(graph: Graph) -> Graph:
    """The graph with every tensor of rank 6 and more lowered, where a rule above applies."""
    from edgekit.edit import Editor

    if all(_rank(node) <= LIMIT for node in graph.exported.graph.nodes):
        return graph
    editor = Editor(graph)
    lowering = _Lowering(editor)
    for node in editor.calls():
        if any(_rank(value) > LIMIT for value in (node, *_sources(node))):
            lowering.lower(node)
    return editor.done()


class _Lowering:
    """Rewrites node by node; ``_data`` holds the stand-in for each tensor of high rank."""

    def __init__(self, editor: Editor) -> None:
        import torch

        self._editor = editor
        self._data: dict[Node, Node] = {}
        self._aten = torch.ops.aten
        self._pointwise = torch.Tag.pointwise

    def lower(self, node: Node) -> None:
        """Give ``node`` a stand-in; one of low rank is replaced by its own."""
        rule = self._rule(node)
        stand_in = rule(node) if rule else None
        if stand_in is None:
            return
        if _rank(node) > LIMIT:
            self._data[node] = stand_in
        else:
            self._editor.replace(node, self._reshape(stand_in, _shape(node), node))

    def _rule(self, node: Node) -> Callable[[Node], Node | None] | None:
        name = str(node.target)
        if name in ("aten.permute.default", "aten.transpose.int"):
            return self._permute
        if name in RESHAPES:
            return lambda node: self._source(node.args[0])
        if name in ALONG_ONE:
            return self._along_one
        if name == "aten.linear.default":
            return self._linear
        if node.target is operator.getitem and _is_unbind(node.args[0]):
            return self._unbound
        tags = getattr(node.target, "tags", ())
        return self._each_element if self._pointwise in tags else None

    def _source(self, value: Any) -> Node:
        stand_in: Node = self._data.get(value, value)
        return stand_in

    def _reshape(self, node: Node, shape: Shape, like: Node) -> Node:
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        result = self._editor.call(self._aten.reshape.default, node, sizes, like=like)
        result.meta["val"] = _value(node).reshape(shape)
        return result

    def _permute(self, node: Node) -> Node | None:
        source: Any = node.args[0]
        axes: Any = node.args[1:]
        shape = _shape(source)
        places = list(range(len(shape)))
        if str(node.target) == "aten.transpose.int":
            one, two = axes
            places[one], places[two] = places[two], places[one]
        else:
            places = [axis % len(shape) for axis in axes[0]]
        sizes, order = _groups(shape, places)
        permute = self._permuted if len(sizes) <= LIMIT else self._swapped
        return permute(self._source(source), sizes, order, node)

    def _permuted(self, source: Node, sizes: Shape, order: list[int], like: Node) -> Node | None:
        if _unknown(sizes) > 1:
            return None
        shaped = self._reshape(source, sizes, like)
        result = self._editor.call(self._aten.permute.default, shaped, order, like=like)
        result.meta["val"] = _value(shaped).permute(order)
        return result

    def _swapped(self, source: Node, sizes: Shape, order: list[int], like: Node) -> Node | None:
        now, result = list(range(len(sizes))), source
        for place, wanted in enumerate(order):
            found = now.index(wanted)
            if found == place:
                continue
            blocks = (now[:place], now[place:found], [wanted], now[found + 1 :])
            swap = tuple(math.prod(sizes[i] for i in block) for block in blocks)
            step = self._permuted(result, swap, [0, 2, 1, 3], like)
            if step is None:
                return None
            result, now = step, blocks[0] + blocks[2] + blocks[1] + blocks[3]
        return result

    def _along_one(self, node: Node) -> Node | None:
        source, axis, *rest = node.args
        one: Any = axis[0] if isinstance(axis, list | tuple) and len(axis) == 1 else axis
        if not isinstance(one, int):
            return None
        shape, place = _merged_around(_shape(source), one)
        if _unknown(shape) > 1:
            return None
        shaped = self._reshape(self._source(source), shape, node)
        same_kind = place if isinstance(axis, int) else [place]
        return self._same(node, (shaped, same_kind, *rest))

    def _linear(self, node: Node) -> Node | None:
        source, *rest = node.args
        shape, _ = _merged_around(_shape(source), -1)
        if _unknown(shape) > 1:
            return None
        return self._same(node, (self._reshape(self._source(source), shape, node), *rest))

    def _unbound(self, node: Node) -> Node | None:
        unbind, index = node.args
        source, axis = (*unbind.args, 0)[:2]  # type: ignore[union-attr]
        shape, place = _merged_around(_shape(source), axis)
        if _unknown(shape) > 1:
            return None
        shaped = self._reshape(self._source(source), shape, node)
        result = self._editor.call(self._aten.select.int, shaped, place, index, like=node)
        result.meta["val"] = _value(shaped).select(place, index)
        return result

    def _each_element(self, node: Node) -> Node | None:
        tensors = [value for value in node.args if _rank(value) >= 0]
        shapes = [_aligned(_shape(value), _rank(node)) for value in tensors]
        merged = _merged_together(shapes)
        if len(merged[0]) > LIMIT or any(_unknown(shape) > 1 for shape in merged):
            return None
        lowered = {
            value: self._reshape(self._source(value), shape, node)
            for value, shape in zip(tensors, merged, strict=True)
        }
        return self._same(node, tuple(lowered.get(v, v) if _rank(v) >= 0 else v for v in node.args))

    def _same(self, node: Node, args: tuple[Any, ...]) -> Node:
        """The operator of ``node`` on other arguments."""
        from torch.fx import map_arg

        result = self._editor.call(node.target, *args, like=node, **node.kwargs)
        values, options = map_arg((args, dict(node.kwargs)), _value)
        result.meta["val"] = node.target(*values, **options)  # type: ignore[operator]
        return result


def _value(node: Node) -> Any:
    return node.meta["val"]


def _rank(node: Any) -> int:
    """Axes of a node's tensor; -1 for anything else."""
    value: Any = getattr(node, "meta", {}).get("val")
    return value.ndim if hasattr(value, "ndim") else -1


def _shape(node: Any) -> Shape:
    return tuple(_value(node).shape)


def _sources(node: Node) -> list[Node]:
    """The nodes whose tensors a node reads; one piece of an unbind reads what was unbound."""
    return [
        source
        for value in node.all_input_nodes
        for source in (value.all_input_nodes if _is_unbind(value) else [value])
    ]


def _is_unbind(node: Any) -> bool:
    return str(node.target) == "aten.unbind.int"


def _unknown(shape: Shape) -> int:
    """How many sizes are not known numbers; a reshape can infer one."""
    return sum(not isinstance(size, int) for size in shape)


def _groups(shape: Shape, places: list[int]) -> tuple[Shape, list[int]]:
    """Case 1: sizes of the groups of axes that a permutation moves together, and their order.

    >>> _groups((2, 1, 3, 4, 5, 6), [0, 1, 4, 5, 2, 3])
    ((2, 12, 30), [0, 2, 1])
    """
    kept = [axis for axis in places if not (isinstance(shape[axis], int) and shape[axis] == 1)]
    rank = {axis: i for i, axis in enumerate(sorted(kept))}
    groups: list[list[int]] = []
    for axis in kept:
        if groups and rank[axis] == rank[groups[-1][-1]] + 1:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    before = sorted(groups)
    return tuple(math.prod(shape[a] for a in g) for g in before), [before.index(g) for g in groups]


def _merged_around(shape: Shape, axis: int) -> tuple[Shape, int]:
    """Case 2: at most five axes, one of them ``axis``, and where that is now.

    >>> _merged_around((2, 3, 4, 5, 6, 7), 3)
    ((6, 4, 5, 6, 7), 2)
    """
    axis %= len(shape)
    before, after = list(shape[:axis]), list(shape[axis + 1 :])
    while len(before) + 1 + len(after) > LIMIT:
        side = before if len(before) > 1 else after
        side[:2] = [side[0] * side[1]]
    return (*before, shape[axis], *after), len(before)


def _aligned(shape: Shape, rank: int) -> Shape:
    return (1,) * (rank - len(shape)) + shape


def _merged_together(shapes: list[Shape]) -> list[Shape]:
    """Case 3: fewer axes for shapes that broadcast together, five if that can be.

    >>> _merged_together([(2, 3, 4, 5, 6, 7), (2, 3, 4, 5, 6, 1)])
    [(6, 4, 5, 6, 7), (6, 4, 5, 6, 1)]
    """
    axis = 0
    while len(shapes[0]) > LIMIT and axis + 1 < len(shapes[0]):
        whole = [
            tuple(isinstance(s[i], int) and s[i] == 1 for s in shapes) for i in (axis, axis + 1)
        ]
        if whole[0] == whole[1]:
            shapes = [(*s[:axis], s[axis] * s[axis + 1], *s[axis + 2 :]) for s in shapes]
        else:
            axis += 1
    return shapes

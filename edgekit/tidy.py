"""Tidying an exported graph: what a module's code asks for and no backend needs.

1. A view demands strides, which a rewrite upstream may change; a reshape does not.
2. A slice of everything is its input: caches cut their inputs off, logits are sliced to be kept.
3. A split of a transposed tensor, of which a part is transposed back, is a split of the tensor.
4. Two transposes of the same axes are none: state-space models pass channels first between
   functions that compute with channels last.
5. A squeeze of an axis that is not of size 1 is its input; ONNX's Squeeze is an error there.
6. So is a repetition of everything once.
7. A linear's weight that is rearranged from a parameter is a parameter: quantization sees it.
8. So is a weight of few levels that is computed from what was trained.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from edgekit.edit import Editor

if TYPE_CHECKING:
    from edgekit.model import Graph

_TRANSPOSE = "aten.transpose.int"
_REPEATS = ("aten.repeat.default", "aten.expand.default")
_ARRANGING = frozenset(
    f"aten.{name}"
    for name in "reshape.default permute.default transpose.int clone.default _unsafe_view.default "
    "squeeze.dim unsqueeze.default contiguous.default".split()
)


def tidy(graph: Graph) -> Graph:
    """The same graph with fewer nodes, every value of it as before."""
    editor = Editor(graph)
    for node in editor.calls("aten.view.default"):
        node.target = torch.ops.aten.reshape.default
    for node in editor.calls("aten.slice.Tensor"):
        step = node.args[4] if len(node.args) > 4 else 1
        if step == 1 and _is_whole(node):
            node.replace_all_uses_with(_source(node))
    for node in editor.calls("aten.squeeze.dim", "aten.squeeze.dims", *_REPEATS):
        if node.meta["val"].dim() == _source(node).meta["val"].dim() and _is_whole(node):
            node.replace_all_uses_with(_source(node))
    for node in editor.calls("aten.split.Tensor", "aten.split_with_sizes.default"):
        if str(_source(node).target) == _TRANSPOSE:
            _split_first(editor, node)
    for node in reversed(list(editor.calls(_TRANSPOSE))):
        source = _source(node)
        if str(source.target) == _TRANSPOSE and _axes(source) == _axes(node):
            node.replace_all_uses_with(_source(source))
    for node in editor.calls("aten.linear.default"):
        _arrange_weight(editor, node)
    for node in editor.calls("edgekit.few_levels.default"):
        _compute(editor, node)
    return editor.done()


def _source(node: Node) -> Node:
    return cast("Node", node.args[0])


def _axes(node: Node) -> tuple[int, int]:
    """The two axes that a transpose exchanges, counted from the front, in order."""
    rank = _source(node).meta["val"].dim()
    first, second = sorted(axis % rank for axis in _integers(node.args[1:3]))
    return first, second


def _integers(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _is_whole(node: Node) -> bool:
    """Whether a result has the sizes of what it is made from, of the same rank."""
    before, after = (n.meta["val"].shape for n in (_source(node), node))
    return all(statically_known_true(a == b) for a, b in zip(before, after, strict=True))


def _split_first(editor: Editor, node: Node) -> None:
    """Split what is transposed and transpose the parts, if that spares a transpose."""
    back = [
        user
        for part in node.users
        for user in part.users
        if str(user.target) == _TRANSPOSE and _axes(user) == _axes(_source(node))
    ]
    axes, x = _axes(_source(node)), _source(_source(node))
    axis: Any = node.args[2] if len(node.args) > 2 else 0
    axis %= x.meta["val"].dim()
    if axis not in axes or not back:
        return
    other = sum(axes) - axis
    split = editor.call(node.target, x, node.args[1], other, like=node)
    for part in list(node.users):
        plain = editor.call(operator.getitem, split, part.args[1], like=part)
        plain.meta["val"] = part.meta["val"].transpose(*axes)
        turned = editor.call(torch.ops.aten.transpose.int, plain, *axes, like=part)
        turned.meta["val"] = part.meta["val"]
        part.replace_all_uses_with(turned)


def _arrange_weight(editor: Editor, node: Node) -> None:
    """Give a linear its weight as it is after the reshapes and permutations on the way to it."""
    weight: Any = node.args[1]
    path = []
    while str(weight.target) in _ARRANGING:
        path.append(weight)
        weight = _source(weight)
    value = editor.tensor(weight)
    if value is None or not path:
        return
    for step in reversed(path):
        value = step.target(value, *step.args[1:], **step.kwargs)
    name = f"{editor.tensor_name(weight)}.{path[0].name}"
    node.replace_input_with(path[0], editor.buffer(name, value.detach()))


def _compute(editor: Editor, node: Node) -> None:
    """Store a weight of few levels, if what it is made of is a parameter."""
    value = editor.tensor(_source(node))
    if value is not None:
        operation: Any = node.target
        made = operation(value.detach(), node.args[1])
        name = f"{editor.tensor_name(_source(node))}.few_levels"
        node.replace_all_uses_with(editor.buffer(name, made))

"""select_first: choose a token before the work whose other results are thrown away.

    f(x)[:, k] = f(x[:, k])                  f the same for each token: linear, norm, activation
    (x + y)[:, k] = x[:, k] + y[:, k]
    (softmax(s Q K^T) V)[k] = softmax(s Q[k] K^T) V

A classifier that reads one token needs the last block's projections and MLP for that token
only. The slice moves up from the final ``select`` until a value that others read too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph

#: The same function of each value.
_POINTWISE = {f"aten.{name}.default" for name in ("gelu", "relu", "silu", "clone", "dropout")}
#: The same function of each vector along the last axis.
_BY_VECTOR = {"aten.linear.default", "aten.layer_norm.default", "aten.rms_norm.default"}
#: The same where its thresholds lie along the last axis.
_UNIT = "edgekit.qcfs.default"
_BINARY = {"aten.add.Tensor", "aten.mul.Tensor", "aten.sub.Tensor"}
_RESHAPE = {"aten.reshape.default", "aten.view.default", "aten._unsafe_view.default"}
_SLICE = "aten.slice.Tensor"
_ATTENTION = "aten.scaled_dot_product_attention.default"


def rewrite(graph: Graph) -> Graph:
    """The graph with each selection of one token moved to where it saves work."""
    import torch

    from edgekit.edit import Editor

    editor = Editor(graph)
    for node in editor.calls("aten.select.int"):
        x: Any = node.args[0]
        axis, index = node.args[1:]
        if axis == 1 and isinstance(index, int) and index >= 0 and x.meta["val"].dim() == 3:
            cut = _slice(editor, x, 1, index, like=node)
            editor.replace(node, editor.call(torch.ops.aten.select.int, cut, 1, 0, like=node))
    while any(_move_up(editor, node) for node in reversed(list(editor.calls()))):
        pass
    return editor.done()


def _move_up(editor: Editor, x: Node) -> bool:
    """Compute a call from cut operands, if all that read it is the same cut of it."""
    cuts = list(x.users)
    if not cuts or any(str(user.target) != _SLICE or user.args[0] is not x for user in cuts):
        return False
    where = {tuple(user.args[1:]) for user in cuts}
    if len(where) != 1 or len(cuts[0].args) != 4:
        return False
    axis, index, end = (value for value in cuts[0].args[1:])
    if not (isinstance(axis, int) and isinstance(index, int) and end == index + 1):
        return False
    operands = _cut_operands(editor, x, axis, index)
    if operands is None:
        return False
    new = editor.call(x.target, *operands, like=x, **x.kwargs)
    new.meta["val"] = x.meta["val"].narrow(axis, 0, 1)
    for cut in cuts:
        cut.replace_all_uses_with(new)
        editor.fx.erase_node(cut)
    editor.replace(x, new)
    return True


def _cut_operands(editor: Editor, x: Node, axis: int, index: int) -> list[Any] | None:
    """The call's arguments for one position along an axis of its result; None if it mixes them."""
    kind, last = str(x.target), x.meta["val"].dim() - 1
    first, *rest = list(x.args) or [None]

    def cut(operand: Any) -> Any:
        return _operand(editor, x, operand, axis, index)

    by_vector = kind in _BY_VECTOR or (kind == _UNIT and x.args[4] in (-1, last))
    if kind in _POINTWISE or (by_vector and axis < last):
        return [cut(first), *rest]
    if kind in _BINARY:
        return [cut(first), cut(rest[0]), *rest[1:]]
    if kind == _ATTENTION and axis == last - 1 and len(x.args) == 3:
        return [cut(first), *rest]
    if kind in _RESHAPE and _same_up_to(axis, first, x):  # type: ignore[arg-type]
        sizes: Any = list(rest[0])  # type: ignore[arg-type]
        sizes[axis] = 1
        return [_slice(editor, first, axis, index, like=x), sizes]
    before = _axis_before(x, axis)
    return None if before is None else [_slice(editor, first, before, index, like=x), *rest]


def _operand(editor: Editor, user: Node, operand: Any, axis: int, index: int) -> Any:
    """An operand cut as its user is; a number, or what has a single token or none, is left."""
    if not hasattr(operand, "meta"):
        return operand
    value = operand.meta["val"]
    own = axis - (user.meta["val"].dim() - value.dim())
    if own < 0 or value.shape[own] == 1:
        return operand
    return _slice(editor, operand, own, index, like=user)


def _slice(editor: Editor, x: Any, axis: int, index: int, like: Node) -> Node:
    import torch

    new = editor.call(torch.ops.aten.slice.Tensor, x, axis, index, index + 1, like=like)
    new.meta["val"] = x.meta["val"].narrow(axis, 0, 1)
    return new


def _same_up_to(axis: int, before: Node, after: Node) -> bool:
    """Whether a reshape leaves the sizes up to an axis as they are.

    The first size, which may be dynamic, is the same where all others' product is.
    """
    sizes = [list(node.meta["val"].shape[1:]) for node in (before, after)]
    if axis == 0 or not all(isinstance(size, int) for shape in sizes for size in shape):
        return False
    return sizes[0][:axis] == sizes[1][:axis] and math.prod(sizes[0]) == math.prod(sizes[1])


def _axis_before(x: Node, axis: int) -> int | None:
    """Where an axis was before a transposition or a cut of another; None for other calls."""
    rank = int(x.meta["val"].dim())
    if str(x.target) == "aten.transpose.int":
        one, other = (int(a) % rank for a in x.args[1:])  # type: ignore[arg-type]
        return {one: other, other: one}.get(axis, axis)
    if str(x.target) == "aten.permute.default":
        order: Any = x.args[1]
        return int(order[axis]) % rank
    if str(x.target) == _SLICE and len(x.args) == 4 and x.args[1] != axis:
        return axis
    return None

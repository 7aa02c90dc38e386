"""Follow: where the channels that an operator gives are read.

Each value of the graph carries the number of the producer's channel that it scales with, found by
running the very operators that move values on those numbers: a fused qkv that is reshaped,
permuted and unbound needs no pattern. A channel that reaches anything else must keep its scale.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.fx.node import map_aggregate

from edgekit.quantize.channels import (
    READERS,
    Producer,
    Reach,
    Reader,
    argument,
    owned,
    traced_shape,
    traced_size,
)

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.edit import Editor


def follow(editor: Editor, producer: Producer) -> Reach:
    """Where a producer's channels go."""
    flow = _Flow(editor, producer)
    started = False
    for node in editor.fx.nodes:
        if started and flow.alive and any(n in flow.values for n in node.all_input_nodes):
            flow.step(node)
        started = started or node is producer.node
    return Reach(tuple(flow.readers), flow.free[1:], frozenset(flow.through))


class _Flow:
    """Channel numbers, from 1, of each value reached so far; 0 scales with none of them.

    They are float64, which all operators take and which is exact.
    """

    def __init__(self, editor: Editor, producer: Producer) -> None:
        self._editor = editor
        numbers = torch.arange(1, producer.count + 1, dtype=torch.float64)
        start = _along(numbers, producer.axis, traced_shape(producer.node))
        self.values: dict[Node, Any] = {producer.node: start}
        self.free = torch.ones(producer.count + 1, dtype=torch.bool)
        self.readers: list[Reader] = []
        self.through: set[str] = set()

    @property
    def alive(self) -> bool:
        """Whether any channel is still free."""
        return bool(self.free[1:].any())

    def step(self, node: Node) -> None:
        """Hand the numbers on through one operator, or fix them."""
        target = str(node.target)
        if target in READERS:
            self._read(node)
            return
        handle = _HANDLERS.get(target)
        result = None if handle is None else handle(self, node)
        if result is None:
            self._stop(node)
        else:
            self.values[node] = result
            self.through.add(target)

    def number(self, node: Any) -> torch.Tensor | None:
        """The numbers of an argument, or None where it has none."""
        return self.values.get(node) if not isinstance(node, (list, tuple)) else None

    def fix(self, holder: Any) -> None:
        """Keep the scale of the channels in an argument."""
        value = self.values.get(holder, ())
        for part in value if isinstance(value, tuple) else (value,):
            self.free[part.unique().long()] = False

    def _stop(self, node: Node) -> None:
        for holder in node.all_input_nodes:
            self.fix(holder)

    def _read(self, node: Node) -> None:
        value = self.number(node.args[0])
        numbers = None if value is None else _uniform(value, READERS[str(node.target)])
        if numbers is None or not owned(self._editor, node.args[1]):
            self._stop(node)
        else:
            self.readers.append(Reader(node, numbers.long() - 1))


def _moved(flow: _Flow, node: Node) -> Any:
    """The numbers moved as the operator moves values."""

    def value(given: Any) -> Any:
        if not isinstance(given, torch.fx.Node):
            return given
        if given in flow.values:
            return flow.values[given]
        meta = given.meta["val"]
        if isinstance(meta, torch.Tensor):
            return torch.zeros(traced_shape(given), dtype=torch.float64)
        return traced_size(meta)

    arguments, options = map_aggregate((node.args, dict(node.kwargs)), value)
    target: Any = node.target
    result = target(*arguments, **options)
    return tuple(result) if isinstance(result, (list, tuple)) else result


def _padded(flow: _Flow, node: Node) -> Any:
    fill = node.args[-1] if isinstance(node.args[-1], (int, float)) else 0
    return _moved(flow, node) if fill == 0 else None


def _same(flow: _Flow, node: Node) -> Any:
    """f(s x) = s f(x) for s > 0, value by value."""
    return flow.number(node.args[0])


def _times(flow: _Flow, node: Node) -> Any:
    first, second = flow.number(node.args[0]), flow.number(node.args[1])
    if first is not None and second is not None:
        return None
    value = first if first is not None else second
    return None if value is None else value.expand(traced_shape(node))


def _over(flow: _Flow, node: Node) -> Any:
    return _times(flow, node) if flow.number(node.args[1]) is None else None


def _plus(flow: _Flow, node: Node) -> Any:
    first, second = flow.number(node.args[0]), flow.number(node.args[1])
    if first is None or second is None:
        return None
    shape = traced_shape(node)
    first, second = first.expand(shape), second.expand(shape)
    return first if torch.equal(first, second) else None


def _pooled(flow: _Flow, node: Node) -> Any:
    """Operators on each channel of (n, c, ...) alone, linear or homogeneous."""
    value = flow.number(node.args[0])
    numbers = None if value is None or value.dim() < 3 else _uniform(value, 1)
    return None if numbers is None else _along(numbers, 1, traced_shape(node))


def _reduced(flow: _Flow, node: Node) -> Any:
    """A mean or sum of values that all scale alike."""
    value, axes = flow.number(node.args[0]), argument(node, 1)
    if value is None or not axes:
        return None
    low, high = value.amin(axes), value.amax(axes)
    return high.reshape(traced_shape(node)) if torch.equal(low, high) else None


def _product(flow: _Flow, node: Node) -> Any:
    """x @ y: a column of y scales a column of the result, a row of x a row."""
    first, second = flow.number(node.args[0]), flow.number(node.args[1])
    if first is not None and second is not None:
        return None
    value, axis = (first, -1) if second is None else (second, -2)
    if value is None or value.dim() != len(traced_shape(node)):
        return None
    return _alike(value, axis, traced_shape(node))


def _attended(flow: _Flow, node: Node) -> Any:
    """softmax(q k) v is linear in v, channel by channel; q, k and a mask keep their scales."""
    query, key, value, *mask = node.args
    for fixed in (query, key, *mask[:1]):
        flow.fix(fixed)
    numbers = flow.number(value)
    if numbers is None or node.kwargs.get("enable_gqa") or "attn_mask" in node.kwargs:
        return None
    return _alike(numbers, -2, traced_shape(node))


def _alike(value: torch.Tensor, axis: int, shape: tuple[int, ...]) -> torch.Tensor | None:
    """Numbers that are the same along an axis, spread over another shape."""
    first = value.narrow(axis, 0, 1)
    return first.expand(shape) if bool((value == first).all()) else None


def _uniform(value: torch.Tensor, axis: int) -> torch.Tensor | None:
    """The numbers along an axis, where all other positions have the same."""
    rows = value.movedim(axis, -1).reshape(-1, value.shape[axis])
    return rows[0] if bool((rows == rows[0]).all()) else None


def _along(numbers: torch.Tensor, axis: int, shape: tuple[int, ...]) -> torch.Tensor:
    places = [1] * len(shape)
    places[axis] = -1
    return numbers.reshape(places).expand(shape)


def _table(handle: Callable[[_Flow, Node], Any], names: str) -> dict[str, Any]:
    return {f"aten.{name}": handle for name in names.split()}


_HANDLERS: dict[str, Callable[[_Flow, Node], Any]] = {
    str(operator.getitem): _moved,
    **_table(
        _moved,
        "reshape.default view.default _unsafe_view.default flatten.using_ints unflatten.int "
        "permute.default transpose.int t.default movedim.int unsqueeze.default squeeze.default "
        "squeeze.dim squeeze.dims expand.default repeat.default clone.default "
        "contiguous.default alias.default detach.default unbind.int chunk.default split.Tensor "
        "split_with_sizes.default select.int slice.Tensor cat.default stack.default "
        "roll.default flip.default",
    ),
    **_table(_padded, "pad.default constant_pad_nd.default"),
    **_table(
        _same,
        "relu.default leaky_relu.default prelu.default neg.default abs.default "
        "dropout.default _to_copy.default to.dtype",
    ),
    **_table(_times, "mul.Tensor mul.Scalar"),
    **_table(_over, "div.Tensor div.Scalar"),
    **_table(_plus, "add.Tensor sub.Tensor"),
    **_table(
        _pooled,
        "adaptive_avg_pool2d.default avg_pool2d.default max_pool2d.default "
        "upsample_nearest2d.vec upsample_bilinear2d.vec upsample_bicubic2d.vec",
    ),
    **_table(_reduced, "mean.dim sum.dim_IntList"),
    **_table(_product, "matmul.default bmm.default"),
    **_table(_attended, "scaled_dot_product_attention.default"),
}

"""Channels: where the channels that an operator gives are read, and how they are rescaled.

If channel c of a producer is divided by s_c, operators that only move values, or are linear or
positively homogeneous in them, hand the division on; weights that read the channel undo it by
multiplying by s_c. The function of the model stays as it is.

Each value of the graph carries the number of the producer's channel that it scales with, found by
running the very operators that move values on those numbers: a fused qkv that is reshaped,
permuted and unbound needs no pattern. A channel that reaches anything else must keep its scale.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.fx.node import map_aggregate

from edgekit.quantize.sites import OPERATORS

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.edit import Editor

#: Operators whose last-axis or second-axis channels are scaled by constants: axis, and where
#: among their arguments the constants are. All of them are divided.
_PRODUCERS = {
    "aten.linear.default": (-1, (1, 2)),
    "aten.conv1d.default": (1, (1, 2)),
    "aten.conv2d.default": (1, (1, 2)),
    "aten.conv2d.padding": (1, (1, 2)),
    "aten.layer_norm.default": (-1, (2, 3)),
    "aten.rms_norm.default": (-1, (2,)),
    "aten.group_norm.default": (1, (2, 3)),
    "aten._native_batch_norm_legit_no_training.default": (1, (1, 2)),
}


@dataclass(frozen=True)
class Producer:
    """An operator whose channels constants scale.

    Attributes:
        node: what gives the channels.
        axis: theirs in its output.
        count: how many.
        constants: placeholders with one row a channel, read by this operator only.
    """

    node: Node
    axis: int
    count: int
    constants: tuple[Node, ...]


@dataclass(frozen=True)
class Reader:
    """A linear or convolution that reads the channels.

    Attributes:
        node: the call.
        channels: for each of its input channels the producer's channel, or -1 for none.
    """

    node: Node
    channels: torch.Tensor


@dataclass(frozen=True)
class Reach:
    """How far a producer's channels go.

    Attributes:
        readers: all that read them, where they end.
        free: whether a channel can be rescaled, (count,).
        through: operators on the way.
    """

    readers: tuple[Reader, ...]
    free: torch.Tensor
    through: frozenset[str]


def find_producers(editor: Editor) -> Iterator[Producer]:
    """Every operator whose output can be rescaled by its own constants, in order."""
    for node in editor.calls(*_PRODUCERS, "aten.mul.Tensor"):
        target = str(node.target)
        if target == "aten.mul.Tensor":
            found = _constant_factor(editor, node)
            if found is not None:
                yield Producer(node, -1, _shape(node)[-1], (found,))
            continue
        axis, places = _PRODUCERS[target]
        constants = [n for i in places if (n := _argument(node, i)) is not None]
        if len(constants) == 0 or not all(owned(editor, n) for n in constants):
            continue
        if target == "aten.layer_norm.default" and len(node.args[1]) != 1:  # type: ignore[arg-type]
            continue
        if _argument(node, places[0]) is None:
            continue
        outputs = [n for n in node.users if n.target is operator.getitem and n.args[1] == 0]
        several = isinstance(node.meta["val"], (tuple, list))
        for output in outputs if several else [node]:
            yield Producer(output, axis, _shape(output)[axis], tuple(constants))


def owned(editor: Editor, node: Any) -> bool:
    """Whether a constant is read in one place only, so that it can be changed."""
    return editor.tensor(node) is not None and len(node.users) == 1


def rescale(editor: Editor, producer: Producer, reach: Reach, factors: torch.Tensor) -> None:
    """Divide a producer's channels by ``factors`` (count,) and multiply what reads them."""
    for constant in producer.constants:
        value = _tensor(editor, constant)
        if str(producer.node.target) == "aten.mul.Tensor":
            divisor = factors.reshape(value.shape)
        else:
            divisor = factors.reshape(-1, *[1] * (value.dim() - 1))
        editor.assign(editor.tensor_name(constant), value / divisor)
    for reader in reach.readers:
        multiply_inputs(editor, reader.node, spread(factors, reader, 1.0))


def spread(values: torch.Tensor, reader: Reader, other: float) -> torch.Tensor:
    """A producer's values (count,) for each of a reader's inputs; ``other`` where it reads none."""
    chosen = values[reader.channels.clamp_min(0)]
    return torch.where(reader.channels >= 0, chosen, torch.full_like(chosen, other))


def multiply_inputs(editor: Editor, call: Node, factors: torch.Tensor) -> None:
    """Multiply what a linear's or convolution's weight holds for each input channel."""
    holder: Any = call.args[1]
    weight = _tensor(editor, holder)
    blocks = by_input(call, weight)
    groups = blocks.shape[0]
    scaled = blocks * factors.to(blocks.dtype).reshape(groups, 1, -1, 1)
    editor.assign(editor.tensor_name(holder), scaled.reshape(weight.shape))


def by_input(call: Node, weight: torch.Tensor) -> torch.Tensor:
    """A weight as (groups, outputs of a group, inputs of a group, taps), in float64."""
    groups = 1 if str(call.target) == "aten.linear.default" else _groups(call)
    return weight.detach().double().reshape(groups, len(weight) // groups, weight.shape[1], -1)


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
        start = _along(numbers, producer.axis, _shape(producer.node))
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
        if target in OPERATORS:
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

    def fix(self, argument: Any) -> None:
        """Keep the scale of the channels in an argument."""
        value = self.values.get(argument, ())
        for part in value if isinstance(value, tuple) else (value,):
            self.free[part.unique().long()] = False

    def _stop(self, node: Node) -> None:
        for argument in node.all_input_nodes:
            self.fix(argument)

    def _read(self, node: Node) -> None:
        value = self.number(node.args[0])
        axis = -1 if OPERATORS[str(node.target)] == "linear" else 1
        numbers = None if value is None else _uniform(value, axis)
        if numbers is None or not owned(self._editor, node.args[1]):
            self._stop(node)
        else:
            self.readers.append(Reader(node, numbers.long() - 1))


def _moved(flow: _Flow, node: Node) -> Any:
    """The numbers moved as the operator moves values."""

    def value(argument: Any) -> Any:
        if not isinstance(argument, torch.fx.Node):
            return argument
        if argument in flow.values:
            return flow.values[argument]
        meta = argument.meta["val"]
        if isinstance(meta, torch.Tensor):
            return torch.zeros(_shape(argument), dtype=torch.float64)
        return _size(meta)

    arguments, options = map_aggregate((node.args, dict(node.kwargs)), value)  # type: ignore[misc]
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
    return None if value is None else value.expand(_shape(node))


def _over(flow: _Flow, node: Node) -> Any:
    return _times(flow, node) if flow.number(node.args[1]) is None else None


def _plus(flow: _Flow, node: Node) -> Any:
    first, second = flow.number(node.args[0]), flow.number(node.args[1])
    if first is None or second is None:
        return None
    first, second = torch.broadcast_tensors(first, second)
    return first if torch.equal(first, second) else None


def _pooled(flow: _Flow, node: Node) -> Any:
    """Operators on each channel of (n, c, ...) alone, linear or homogeneous."""
    value = flow.number(node.args[0])
    numbers = None if value is None or value.dim() < 3 else _uniform(value, 1)
    return None if numbers is None else _along(numbers, 1, _shape(node))


def _reduced(flow: _Flow, node: Node) -> Any:
    """A mean or sum of values that all scale alike."""
    value, axes = flow.number(node.args[0]), _argument(node, 1)
    if value is None or not axes:
        return None
    low, high = value.amin(axes), value.amax(axes)
    return high.reshape(_shape(node)) if torch.equal(low, high) else None


def _product(flow: _Flow, node: Node) -> Any:
    """x @ y: a column of y scales a column of the result, a row of x a row."""
    first, second = flow.number(node.args[0]), flow.number(node.args[1])
    if first is not None and second is not None:
        return None
    value, axis = (first, -1) if second is None else (second, -2)
    if value is None or value.dim() != len(_shape(node)):
        return None
    return _alike(value, axis, _shape(node))


def _attended(flow: _Flow, node: Node) -> Any:
    """softmax(q k) v is linear in v, channel by channel; q, k and a mask keep their scales."""
    query, key, value, *mask = node.args
    for fixed in (query, key, *mask[:1]):
        flow.fix(fixed)
    numbers = flow.number(value)
    if numbers is None or node.kwargs.get("enable_gqa") or "attn_mask" in node.kwargs:
        return None
    return _alike(numbers, -2, _shape(node))


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


def _constant_factor(editor: Editor, node: Node) -> Node | None:
    """The constant by which a product scales its last axis, as in an RMSNorm spelt out."""
    for holder in node.args[:2]:
        value: Any = editor.tensor(holder)
        if value is None or not owned(editor, holder) or not value.is_floating_point():
            continue
        if value.dim() and value.numel() == value.shape[-1] == _shape(node)[-1]:
            return holder  # type: ignore[return-value]
    return None


def _tensor(editor: Editor, node: Any) -> torch.Tensor:
    value = editor.tensor(node)
    if value is None:
        raise TypeError(f"{node} is no constant")
    return value.detach().double()


def _argument(node: Node, place: int) -> Any:
    return node.args[place] if len(node.args) > place else None


def _groups(call: Node) -> int:
    groups: Any = _argument(call, 6)
    return groups or 1


def _shape(node: Node) -> tuple[int, ...]:
    """A node's shape, with the traced size of each dynamic dimension."""
    return tuple(_size(size) for size in node.meta["val"].shape)


def _size(size: Any) -> Any:
    return size.node.hint if isinstance(size, torch.SymInt) else size


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

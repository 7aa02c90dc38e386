"""Channels: operators whose channels can be rescaled, and how that is done.

If channel c of a producer is divided by s_c, operators that only move values, or are linear or
positively homogeneous in them, hand the division on; weights that read the channel undo it by
multiplying by s_c. The function of the model stays as it is. ``edgekit.quantize.follow`` finds
how far a channel goes.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from edgekit.operators.few_levels import is_few_levels

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.edit import Editor

#: The axis of the channels that layers with weights read.
READERS = {
    "aten.linear.default": -1,
    "aten.conv1d.default": 1,
    "aten.conv2d.default": 1,
    "aten.conv2d.padding": 1,
}
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
            axis, constants = -1, _constant_factor(editor, node)
        else:
            axis, places = _PRODUCERS[target]
            constants = _constants(editor, node, places)
        outputs = [n for n in node.users if n.target is operator.getitem and n.args[1] == 0]
        several = isinstance(node.meta["val"], (tuple, list))
        for output in (outputs if several else [node]) if constants else ():
            yield Producer(output, axis, traced_shape(output)[axis], constants)


def owned(editor: Editor, node: Any) -> bool:
    """Whether a constant is read in one place only, so that it can be changed.

    One of few levels cannot: by its own scales 8 bits hold it exactly, by others they do not.
    """
    value = editor.tensor(node)
    return value is not None and len(node.users) == 1 and not is_few_levels(value)


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


def _constants(editor: Editor, node: Node, places: tuple[int, ...]) -> tuple[Node, ...]:
    """All constants that scale an operator's channels; none unless all are owned rows of them."""
    given = [argument(node, place) for place in places]
    rows = {len(v) for n in given if (v := editor.tensor(n)) is not None}
    found = [n for n in given if n is not None]
    if given[0] is None or not all(owned(editor, n) for n in found) or len(rows) != 1:
        return ()
    norm = str(node.target) in ("aten.layer_norm.default", "aten.rms_norm.default")
    return tuple(found) if not norm or len(node.args[1]) == 1 else ()  # type: ignore[arg-type]


def _constant_factor(editor: Editor, node: Node) -> tuple[Node, ...]:
    """The constant by which a product scales its last axis, as in an RMSNorm spelt out."""
    for holder in node.args[:2]:
        value: Any = editor.tensor(holder)
        if value is None or not owned(editor, holder) or not value.is_floating_point():
            continue
        if value.dim() and value.numel() == value.shape[-1] == traced_shape(node)[-1]:
            return (holder,)  # type: ignore[return-value]
    return ()


def _tensor(editor: Editor, node: Any) -> torch.Tensor:
    value = editor.tensor(node)
    if value is None:
        raise TypeError(f"{node} is no constant")
    return value.detach().double()


def argument(node: Node, place: int) -> Any:
    """A positional argument, or None where the call leaves it out."""
    return node.args[place] if len(node.args) > place else None


def _groups(call: Node) -> int:
    groups: Any = argument(call, 6)
    return groups or 1


def traced_shape(node: Node) -> tuple[int, ...]:
    """A node's shape, with the traced size of each dynamic dimension."""
    return tuple(traced_size(size) for size in node.meta["val"].shape)


def traced_size(size: Any) -> Any:
    """A size as it was when the model was traced."""
    return size.node.hint if isinstance(size, torch.SymInt) else size

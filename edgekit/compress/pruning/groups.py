"""Groups: widths of a model, and the slices of tensors that each of their items lies in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

#: What may shrink, as options name it.
DIMENSIONS = ("heads", "mlp", "embedding", "channels", "state")


@dataclass(frozen=True, eq=False)
class Port:
    """A tensor's axis that a width lies along, channel i of the width at place i.

    Attributes:
        owner: the module that holds the tensor.
        name: of the parameter or buffer in it.
    """

    owner: nn.Module
    name: str
    axis: int = 0

    @property
    def tensor(self) -> torch.Tensor:
        """What it is an axis of."""
        found: torch.Tensor = getattr(self.owner, self.name)
        return found

    @property
    def size(self) -> int:
        """Places along the axis."""
        return self.tensor.shape[self.axis]

    @property
    def consumes(self) -> bool:
        """Whether it is the input of a linear layer or a convolution, which nothing passes by."""
        layers = (nn.Linear, nn.Conv1d, nn.Conv2d)
        return isinstance(self.owner, layers) and self.name == "weight" and self.axis == 1


@dataclass(frozen=True, eq=False)
class Slice:
    """Where the items of a group lie along an axis.

    Attributes:
        places: (items, places of each), int64.
    """

    port: Port
    places: torch.Tensor

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over each item's part of ``values``, which is shaped as the tensor: (items,)."""
        along = values.movedim(self.port.axis, 0).reshape(self.port.size, -1).sum(1)
        return along[self.places].sum(1)


@dataclass(frozen=True, eq=False)
class Count:
    """An attribute that falls by ``each`` with every item that goes, such as ``num_heads``.

    A tuple of one number (``normalized_shape``) stays one.
    """

    owner: nn.Module
    name: str
    each: int = 1


@dataclass(frozen=True, eq=False)
class Group:
    """A width of the model.

    Attributes:
        name: the path of the module that it is the width of.
        dimension: one of ``DIMENSIONS``.
        slices, counts: what an item takes with it.
        whole: items are not rounded to multiples: a head is already many channels.
        separate: without an item, all else in the model is as if the item were zero; not so
            where a normalisation sees it.
    """

    name: str
    dimension: str
    slices: tuple[Slice, ...]
    counts: tuple[Count, ...] = ()
    whole: bool = False
    separate: bool = True

    @cached_property
    def items(self) -> int:
        """How many may go, in principle."""
        return len(self.slices[0].places)

    @cached_property
    def consumers(self) -> tuple[Slice, ...]:
        """The slices in inputs of layers."""
        return tuple(s for s in self.slices if s.port.consumes)


@dataclass(frozen=True, eq=False)
class Block:
    """A module whose inside is not made of layers alone, such as attention: its own groups, and
    where the tokens' width enters and leaves it.

    Attributes:
        reads, writes: axes along the width of the tokens that it takes and gives.
    """

    path: str
    module: nn.Module
    groups: tuple[Group, ...]
    reads: tuple[Port, ...]
    writes: tuple[Port, ...]


def rows(layer: nn.Module, places: torch.Tensor) -> list[Slice]:
    """The slices of a layer's outputs: of its weight and bias."""
    return [
        Slice(Port(layer, name), places)
        for name in ("weight", "bias")
        if getattr(layer, name, None) is not None
    ]


def columns(layer: nn.Module, places: torch.Tensor) -> list[Slice]:
    """The slice of a layer's inputs."""
    return [Slice(Port(layer, "weight", 1), places)]


def outputs(*layers: nn.Module) -> tuple[Port, ...]:
    """Axes of layers' outputs."""
    return tuple(
        Port(layer, name)
        for layer in layers
        for name in ("weight", "bias")
        if getattr(layer, name, None) is not None
    )


def inputs(*layers: nn.Module) -> tuple[Port, ...]:
    """Axes of layers' inputs."""
    return tuple(Port(layer, "weight", 1) for layer in layers)


def grid(items: int, each: int, *starts: int) -> torch.Tensor:
    """Places of ``items`` runs of ``each`` channels, once from every start: (items, places).

    >>> grid(2, 2, 0, 10).tolist()
    [[0, 1, 10, 11], [2, 3, 12, 13]]
    """
    run = torch.arange(items * each).reshape(items, each)
    return torch.cat([run + start for start in starts], 1)

"""Surgery: items taken out of a module's tensors, and put back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from edgekit.compress.pruning.groups import Group

#: Items to take out of each group: int64, ascending.
Removals = Mapping[Group, torch.Tensor]


class Undo:
    """What was changed, to put it back."""

    def __init__(self) -> None:
        self._old: list[tuple[dict[str, Any], str, Any]] = []

    def set(self, room: dict[str, Any], name: str, value: Any) -> None:
        """Change one entry."""
        self._old.append((room, name, room[name]))
        room[name] = value

    def put_back(self) -> None:
        """As it was."""
        for room, name, value in reversed(self._old):
            room[name] = value
        self._old.clear()


def lost(removals: Removals) -> dict[tuple[int, int], torch.Tensor]:
    """Places that go, by (id of the tensor, axis)."""
    found: dict[tuple[int, int], list[torch.Tensor]] = {}
    for group, items in removals.items():
        if len(items):
            for each in group.slices:
                key = id(each.port.tensor), each.port.axis
                found.setdefault(key, []).append(each.places[items].flatten())
    return {key: torch.unique(torch.cat(places)) for key, places in found.items()}


def kept_rows(removals: Removals) -> dict[nn.Module, torch.Tensor]:
    """Outputs that stay, of layers that lose some."""
    found: dict[nn.Module, torch.Tensor] = {}
    for group, items in removals.items():
        for each in group.slices:
            port = each.port
            if (port.name, port.axis) == ("weight", 0):
                kept = found.setdefault(port.owner, torch.ones(len(port.tensor), dtype=torch.bool))
                kept[each.places[items].flatten()] = False
    return found


def shrink(root: nn.Module, removals: Removals) -> Undo:
    """Take items out of a module in place; layers' own sizes follow."""
    undo = Undo()
    gone: dict[int, list[tuple[int, torch.Tensor]]] = {}
    for (tensor, axis), places in lost(removals).items():
        gone.setdefault(tensor, []).append((axis, places))
    replace(root, undo, lambda value: _without(value, gone.get(id(value))))
    for group, items in removals.items():
        for count in group.counts:
            room = vars(count.owner)
            undo.set(room, count.name, _less(room[count.name], count.each * len(items)))
    return undo


def reorder(root: nn.Module, groups: list[Group], seed: int) -> Undo:
    """Put the items of each group in another order, in all of its slices alike."""
    undo = Undo()
    generator = torch.Generator().manual_seed(seed)
    moves: dict[int, dict[int, torch.Tensor]] = {}  # a tensor may be shared: it moves once
    for group in groups:
        order = torch.randperm(group.items, generator=generator)
        for each in group.slices:
            axes = moves.setdefault(id(each.port.tensor), {})
            index = axes.setdefault(each.port.axis, torch.arange(each.port.size))
            index[each.places.flatten()] = each.places[order].flatten()
    replace(root, undo, lambda value: _moved(value, moves.get(id(value))))
    return undo


def silence(root: nn.Module, removals: Removals) -> Undo:
    """Zero the input weights of items, or all their weights where they have none there."""
    undo = Undo()
    gone: dict[int, list[tuple[int, torch.Tensor]]] = {}
    for group, items in removals.items():
        for each in group.consumers or group.slices:
            place = each.port.axis, each.places[items].flatten()
            gone.setdefault(id(each.port.tensor), []).append(place)
    replace(root, undo, lambda value: _zeroed(value, gone.get(id(value))))
    return undo


def replace(root: nn.Module, undo: Undo, change: Any) -> None:
    """Put ``change(tensor)`` in each tensor's place wherever it is shared; None leaves it."""
    made: dict[int, torch.Tensor] = {}
    kept = []  # an id must not be given to another tensor meanwhile
    touched = set()
    for module in root.modules():
        for room in (module._parameters, module._buffers):
            for name, value in list(room.items()):
                if value is None:
                    continue
                if id(value) not in made:
                    new = change(value)
                    if new is None:
                        continue
                    kept.append(value)
                    if isinstance(value, nn.Parameter):
                        new = nn.Parameter(new.detach(), value.requires_grad)
                    made[id(value)] = new
                undo.set(room, name, made[id(value)])
                touched.add(module)
    for module in touched:
        _fit(module, undo)


def _without(
    value: torch.Tensor, gone: list[tuple[int, torch.Tensor]] | None
) -> torch.Tensor | None:
    if gone is None:
        return None
    for axis, places in gone:
        kept = torch.ones(value.shape[axis], dtype=torch.bool)
        kept[places] = False
        value = value.index_select(axis, kept.nonzero().flatten().to(value.device))
    return value


def _moved(value: torch.Tensor, moves: dict[int, torch.Tensor] | None) -> torch.Tensor | None:
    if moves is None:
        return None
    for axis, index in moves.items():
        value = value.index_select(axis, index)
    return value


def _zeroed(
    value: torch.Tensor, gone: list[tuple[int, torch.Tensor]] | None
) -> torch.Tensor | None:
    if gone is None:
        return None
    value = value.detach().clone()
    for axis, places in gone:
        value.index_fill_(axis, places, 0.0)
    return value


def _less(value: Any, by: int) -> Any:
    return (value[0] - by,) if isinstance(value, tuple) else value - by


def _fit(module: nn.Module, undo: Undo) -> None:
    """A layer's sizes, as its weight has them."""
    weight = getattr(module, "weight", None)
    if weight is None:
        return
    sizes: dict[str, Any] = {}
    if isinstance(module, nn.Linear):
        sizes = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    elif isinstance(module, nn.modules.conv._ConvNd):
        depthwise = module.groups > 1
        groups = weight.shape[0] if depthwise else 1
        sizes = {
            "out_channels": weight.shape[0],
            "in_channels": weight.shape[1] * groups,
            "groups": groups,
        }
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        sizes = {"normalized_shape": tuple(weight.shape)}
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        sizes = {"num_features": weight.shape[0]}
    elif isinstance(module, nn.GroupNorm):
        sizes = {"num_channels": weight.shape[0]}
    elif isinstance(module, nn.Embedding):
        sizes = {"num_embeddings": weight.shape[0], "embedding_dim": weight.shape[1]}
    for name, size in sizes.items():
        if getattr(module, name) != size:
            undo.set(vars(module), name, size)

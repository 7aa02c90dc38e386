"""Reading torch-pruning's groups as ours: which slices of tensors each of their items lies in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgekit.compress.pruning.groups import Count, Group, Port, Slice
from edgekit.compress.pruning.whole import Whole

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
LOST = "torch-pruning loses its places in a reshape"
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True)
class Left:
    """A width that cannot shrink, and why.

    Attributes:
        name, dimension: as in Group.
    """

    name: str
    dimension: str
    reason: str


class Reader:
    """One group of torch-pruning, as one of ours."""

    def __init__(self, graph: Any, owners: dict[int, tuple[nn.Module, str]], group: Any) -> None:
        self.graph, self.owners = graph, owners
        self.entries = [
            (item.dep.target, graph.is_out_channel_pruning_fn(item.dep.handler), item.idxs, roots)
            for item, roots in ((item, item.root_idxs or item.idxs) for item in group.items)
        ]
        self.modules = [target.module for target, *_ in self.entries]
        self.last = any(out and not target.outputs for target, out, *_ in self.entries)

    def obstacle(self) -> str | None:
        """Why the group cannot shrink: '' where that is no surprise, as with outputs."""
        if self.last or any(type(module).__name__ == "_OutputOp" for module in self.modules):
            return ""
        for module in self.modules:
            if isinstance(module, CONVOLUTIONS) and module.groups not in (1, module.out_channels):
                return "a convolution in groups takes its width"
            if isinstance(module, nn.GroupNorm) and module.num_groups != 1:
                return "a normalisation in groups takes its width"
            if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
                return "a normalisation over more than its width"
            if isinstance(module, Whole):
                block = module.block[0]
                if not block.reads or not block.writes:
                    return f"it goes through {block.path} in ways that are not followed"
        self.items = self._items()
        if len(self.items) < 2:
            return ""
        for target, out, places, _ in self.entries:
            for port in self._ports(target, out):
                if not all(0 <= place < port.size for place in places):
                    return LOST
        if any(len({len(p) for p in each}) > 1 for each in self._placed()):
            return "its items are not alike"
        return None

    def group(self, path: str) -> Group:
        """Ours."""
        slices, counts = [], []
        for (target, out, _, _), placed in zip(self.entries, self._placed(), strict=True):
            module = target.module
            ports = self._ports(target, out)
            slices += [Slice(port, torch.tensor(placed)) for port in ports]
            if isinstance(module, nn.LayerNorm) and not ports:
                counts.append(Count(module, "normalized_shape"))
        across = (nn.LayerNorm, nn.GroupNorm, Whole)  # a batch norm sees each channel alone
        separate = not any(isinstance(m, across) for m in self.modules)
        separate = separate and not any(self._parameter(t) for t, *_ in self.entries)
        return Group(path, self.dimension, tuple(slices), tuple(counts), separate=separate)

    @property
    def dimension(self) -> str:
        """What the width is of."""
        producers = {id(t.module): t.module for t, out, *_ in self.entries if out}.values()
        layers = [m for m in producers if isinstance(m, (nn.Linear, *CONVOLUTIONS))]
        tokens = any(isinstance(m, Whole | nn.Embedding) for m in self.modules)
        linear = [m for m in layers if isinstance(m, nn.Linear)]
        if not tokens and not linear:
            return "channels"
        return "embedding" if tokens or len(layers) > 2 or len(linear) < len(layers) else "mlp"

    def _items(self) -> list[list[int]]:
        """Indices at the root that cannot go without each other."""
        parent: dict[int, int] = {}

        def top(index: int) -> int:
            while parent.setdefault(index, index) != index:
                parent[index] = parent[parent[index]]
                index = parent[index]
            return index

        for _, _, places, roots in self.entries:
            first: dict[int, int] = {}
            for place, root in zip(places, roots, strict=True):
                known = first.setdefault(place, root)
                parent[max(top(known), top(root))] = min(top(known), top(root))
        items: dict[int, list[int]] = {}
        for index in sorted(parent):
            items.setdefault(top(index), []).append(index)
        return list(items.values())

    def _placed(self) -> list[list[list[int]]]:
        """For each entry, the places of every item."""
        owner = {root: number for number, item in enumerate(self.items) for root in item}
        placed = []
        for _, _, places, roots in self.entries:
            found: list[list[int]] = [[] for _ in self.items]
            for place, root in sorted(set(zip(places, roots, strict=True))):
                if place not in found[owner[root]]:
                    found[owner[root]].append(place)
            placed.append(found)
        return placed

    def _parameter(self, target: Any) -> bool:
        return isinstance(target.module, nn.Parameter)

    def _ports(self, target: Any, out: bool) -> tuple[Port, ...]:
        """The tensors' axes that an entry stands for."""
        module = target.module
        if self._parameter(target):
            owner, name = self.owners[id(module)]
            return (Port(owner, name, target.pruning_dim % module.dim()),)
        if isinstance(module, Whole):
            block = module.block[0]
            return block.writes if out else block.reads
        if isinstance(module, nn.Embedding):
            return (Port(module, "weight", 1),)
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            depthwise = isinstance(module, CONVOLUTIONS) and module.groups > 1
            if not out and not depthwise:
                return (Port(module, "weight", 1),)
            return _held(module, "weight", "bias")
        if isinstance(module, (*_NORMS, nn.PReLU)):
            return _held(module, "weight", "bias", "running_mean", "running_var")
        return ()


def _held(module: nn.Module, *names: str) -> tuple[Port, ...]:
    return tuple(Port(module, n) for n in names if getattr(module, n, None) is not None)

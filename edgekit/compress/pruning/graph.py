"""The dependency graph: which layers share a width, through torch-pruning.

G. Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023. The graph is traced with
every block in one piece: what is inside of it, torch-pruning would read as element-wise.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from edgekit import interrupt
from edgekit.compress.pruning.groups import Block, Count, Group, Port, Slice
from edgekit.errors import EdgekitError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
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


class _Join(torch.autograd.Function):
    """Zeros of given shapes that depend on all inputs in one step."""

    @staticmethod
    def forward(ctx: Any, shapes: Sequence[torch.Tensor], *inputs: torch.Tensor) -> Any:
        return tuple(torch.zeros_like(shape) for shape in shapes)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise NotImplementedError


class _Whole(nn.Module):
    """A block while it is traced: it gives what the block gave, in one piece."""

    def __init__(self, block: Block, result: Any) -> None:
        super().__init__()
        self.block = (block,)  # in a tuple, so that its module is no child
        self.result = result

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # a model may read a block's settings
            return getattr(self.__dict__["block"][0].module, name)

    def forward(self, *given: Any, **named: Any) -> Any:
        leaves, _ = _pytree.tree_flatten((given, named))
        inputs = [x for x in leaves if isinstance(x, torch.Tensor) and x.requires_grad]
        values, form = _pytree.tree_flatten(self.result)
        floats = [x for x in values if isinstance(x, torch.Tensor) and x.is_floating_point()]
        made = iter(_Join.apply(floats, *inputs))  # type: ignore[no-untyped-call]
        values = [next(made) if any(x is f for f in floats) else x for x in values]
        return _pytree.tree_unflatten(values, form)


def layer_groups(
    root: nn.Module, inputs: dict[str, torch.Tensor], blocks: Sequence[Block]
) -> tuple[list[Group], list[Left]]:
    """The groups of layers outside of blocks; and those that cannot shrink, with the reason.

    Raises:
        EdgekitError: torch-pruning cannot follow the model.
    """
    import torch_pruning as tp

    class Ends(tp.BasePruningFunc):  # type: ignore[misc]
        """What a block takes and gives; it is never pruned through this."""

        def prune_out_channels(self, layer: Any, idxs: Any) -> Any:
            return layer

        def prune_in_channels(self, layer: Any, idxs: Any) -> Any:
            return layer

        def get_out_channels(self, layer: Any) -> int | None:
            writes = layer.block[0].writes
            return writes[0].size if writes else None

        def get_in_channels(self, layer: Any) -> int | None:
            reads = layer.block[0].reads
            return reads[0].size if reads else None

    flags = [(p, p.requires_grad) for p in root.parameters() if p.is_floating_point()]
    try:
        results = _results(root, inputs, blocks)
        for parameter, _ in flags:
            parameter.requires_grad_(True)
        with _in_one_piece(root, blocks, results), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = tp.DependencyGraph().build_dependency(
                root,
                inputs,
                forward_fn=lambda module, given: module(**given),
                customized_pruners={_Whole: Ends()},
                verbose=False,
            )
            return _read(root, graph)
    except EdgekitError:
        raise
    except Exception as error:
        raise EdgekitError(
            "torch-pruning cannot follow the model.",
            f"{type(error).__name__}: {error}",
            "Choose other passes for it, such as factorize or drop_layers.",
        ) from error
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _results(
    root: nn.Module, inputs: dict[str, torch.Tensor], blocks: Sequence[Block]
) -> dict[str, Any]:
    """What each block gives for these inputs."""
    results: dict[str, Any] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, given: Any, result: Any) -> None:
            results[path] = result

        return hook

    hooks = [block.module.register_forward_hook(keep(block.path)) for block in blocks]
    try:
        with torch.no_grad():
            root(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return results


@contextmanager
def _in_one_piece(
    root: nn.Module, blocks: Sequence[Block], results: dict[str, Any]
) -> Iterator[None]:
    """The module with every block in its place as one step of the graph."""
    wholes = {id(b.module): _Whole(b, results[b.path]) for b in blocks if b.path in results}
    places = [
        (parent, name, child)
        for parent in list(root.modules())
        for name, child in list(parent._modules.items())
        if id(child) in wholes
    ]
    try:
        for parent, name, child in places:
            parent._modules[name] = wholes[id(child)]
        yield
    finally:
        for parent, name, child in places:
            parent._modules[name] = child


def _read(root: nn.Module, graph: Any) -> tuple[list[Group], list[Left]]:
    """torch-pruning's groups as ours."""
    paths = {module: path for path, module in root.named_modules()}
    owners = {
        id(value): (module, name)
        for module in root.modules()
        for name, value in module._parameters.items()
        if value is not None
    }
    groups: list[Group] = []
    left: list[Left] = []
    seen: set[Any] = set()
    for module in list(graph.module2node):
        if module in seen or not isinstance(module, (nn.Linear, *_CONVOLUTIONS, nn.Embedding)):
            continue
        interrupt.check()
        path, pruner = paths[module], graph.get_pruner_of_module(module)
        try:
            width = range(pruner.get_out_channels(module))
            each = graph.get_pruning_group(module, pruner.prune_out_channels, list(width))
        except (IndexError, ZeroDivisionError):
            left.append(Left(path, "embedding", LOST))
            continue
        reader = _Reader(graph, owners, each)
        seen.update(target.module for target, out, *_ in reader.entries if out)
        reason = reader.obstacle()
        if reason is None:
            groups.append(reader.group(path))
        elif reason:
            left.append(Left(path, reader.dimension, reason))
    return groups, left


class _Reader:
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
            if isinstance(module, _CONVOLUTIONS) and module.groups not in (1, module.out_channels):
                return "a convolution in groups takes its width"
            if isinstance(module, nn.GroupNorm) and module.num_groups != 1:
                return "a normalisation in groups takes its width"
            if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
                return "a normalisation over more than its width"
            if isinstance(module, _Whole):
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
        across = (nn.LayerNorm, nn.GroupNorm, _Whole)  # a batch norm sees each channel alone
        separate = not any(isinstance(m, across) for m in self.modules)
        separate = separate and not any(self._parameter(t) for t, *_ in self.entries)
        return Group(path, self.dimension, tuple(slices), tuple(counts), separate=separate)

    @property
    def dimension(self) -> str:
        """What the width is of."""
        producers = {id(t.module): t.module for t, out, *_ in self.entries if out}.values()
        layers = [m for m in producers if isinstance(m, (nn.Linear, *_CONVOLUTIONS))]
        tokens = any(isinstance(m, _Whole | nn.Embedding) for m in self.modules)
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
        if isinstance(module, _Whole):
            block = module.block[0]
            return block.writes if out else block.reads
        if isinstance(module, nn.Embedding):
            return (Port(module, "weight", 1),)
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
            depthwise = isinstance(module, _CONVOLUTIONS) and module.groups > 1
            if not out and not depthwise:
                return (Port(module, "weight", 1),)
            return _held(module, "weight", "bias")
        if isinstance(module, (*_NORMS, nn.PReLU)):
            return _held(module, "weight", "bias", "running_mean", "running_var")
        return ()


def _held(module: nn.Module, *names: str) -> tuple[Port, ...]:
    return tuple(Port(module, n) for n in names if getattr(module, n, None) is not None)

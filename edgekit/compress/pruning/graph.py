"""The dependency graph: which layers share a width, through torch-pruning.

G. Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023. The graph is traced with
every block in one piece: what is inside of it, torch-pruning would read as element-wise.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from edgekit import interrupt
from edgekit.compress.pruning.groups import Block, Group
from edgekit.compress.pruning.reading import CONVOLUTIONS, LOST, Left, Reader
from edgekit.compress.pruning.whole import Whole
from edgekit.errors import EdgekitError


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
                customized_pruners={Whole: Ends()},
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
    wholes = {id(b.module): Whole(b, results[b.path]) for b in blocks if b.path in results}
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
        if module in seen or not isinstance(module, (nn.Linear, *CONVOLUTIONS, nn.Embedding)):
            continue
        interrupt.check()
        path, pruner = paths[module], graph.get_pruner_of_module(module)
        try:
            width = range(pruner.get_out_channels(module))
            each = graph.get_pruning_group(module, pruner.prune_out_channels, list(width))
        except (IndexError, ZeroDivisionError):
            left.append(Left(path, "embedding", LOST))
            continue
        reader = Reader(graph, owners, each)
        seen.update(target.module for target, out, *_ in reader.entries if out)
        reason = reader.obstacle()
        if reason is None:
            groups.append(reader.group(path))
        elif reason:
            left.append(Left(path, reader.dimension, reason))
    return groups, left

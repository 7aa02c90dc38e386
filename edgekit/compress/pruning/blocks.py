"""Blocks: the modules of a model that are more than their layers, outermost first."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from edgekit.compress.pruning import attention, gated, mamba, mamba2, opaque, parallel
from edgekit.compress.pruning.groups import Block

KINDS = (mamba.find, mamba2.find, opaque.find, parallel.find, attention.find, gated.find)


def find(root: nn.Module) -> list[Block]:
    """All known blocks of a module; none lies in another."""
    return list(_within("", root, set()))


def _within(path: str, module: nn.Module, seen: set[int]) -> Iterator[Block]:
    if id(module) in seen:
        return
    seen.add(id(module))
    for kind in KINDS:
        found = kind(path, module)
        if found is not None:
            yield found
            return
    for name, child in module.named_children():
        yield from _within(f"{path}.{name}" if path else name, child, seen)

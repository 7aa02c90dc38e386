"""Gated MLPs whose gate and value are halves of one layer: hidden channels with both rows."""

from __future__ import annotations

from torch import nn

from edgekit.compress.pruning import groups
from edgekit.compress.pruning.groups import Block, Group

#: The layer that makes both halves, and the one behind.
PAIRS = (("fc1", "fc2"), ("gate_up_proj", "down_proj"), ("w12", "w3"), ("net.0.proj", "net.2"))


def find(path: str, module: nn.Module) -> Block | None:
    """The hidden channels of a gated MLP of a known form."""
    for first, second in PAIRS:
        both, out = _at(module, first), _at(module, second)
        if not isinstance(both, nn.Linear) or not isinstance(out, nn.Linear):
            continue
        hidden = out.in_features
        if both.out_features == 2 * hidden:
            slices = groups.rows(both, groups.grid(hidden, 1, 0, hidden))
            slices += groups.columns(out, groups.grid(hidden, 1, 0))
            norm = getattr(module, "norm", None)
            separate = getattr(norm, "weight", None) is None
            if not separate:
                slices += groups.rows(norm, groups.grid(hidden, 1, 0))  # type: ignore[arg-type]
            group = Group(path, "mlp", tuple(slices), separate=separate)
            return Block(path, module, (group,), groups.inputs(both), groups.outputs(out))
    return None


def _at(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None

"""Recurrent mixers of other kinds: nothing inside may shrink, and the model around it still may."""

from __future__ import annotations

from torch import nn

from edgekit.compress.pruning import groups
from edgekit.compress.pruning.groups import Block


def find(path: str, module: nn.Module) -> Block | None:
    """A module with the decay of a recurrence: what it takes in, and gives."""
    out = module._modules.get("out_proj") or module._modules.get("o_proj")
    if module._parameters.get("A_log") is None or not isinstance(out, nn.Linear):
        return None
    layers = [
        child for child in module.children() if isinstance(child, nn.Linear) and child is not out
    ]
    return Block(path, module, (), groups.inputs(*layers), groups.outputs(out))

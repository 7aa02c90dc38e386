"""Mamba-2's blocks: heads and states of the state-space dual (Dao and Gu, 2024).

in_proj makes the gate, x, B, C and a step for each head, in this order; x, B and C go through the
convolution. Heads share B and C in groups, so that one head of each group goes at a time, or a
group with its only head. States go from B and C of all groups alike.
"""

from __future__ import annotations

from typing import Any

import torch

from edgekit.compress.pruning import groups
from edgekit.compress.pruning.groups import Block, Count, Group, Port, Slice


def find(path: str, module: Any) -> Block | None:
    """The widths inside a mixer that holds them as transformers' Mamba-2 does."""
    held = {**module._modules, **module._parameters, **vars(module)}
    needed = "in_proj conv1d dt_bias A_log D out_proj num_heads head_dim n_groups ssm_state_size"
    if any(held.get(name) is None for name in needed.split()):
        return None
    inner = module.num_heads * module.head_dim
    across = 2 * module.n_groups * module.ssm_state_size
    made = 2 * inner + across + module.num_heads
    if module.in_proj.out_features != made or module.out_proj.in_features != inner:
        return None
    found: tuple[Group, ...] = (_states(path, module, inner),)
    if module.num_heads > module.n_groups:
        found = (_heads(path, module, inner, across), *found)
    reads, writes = groups.inputs(module.in_proj), groups.outputs(module.out_proj)
    return Block(path, module, found, reads, writes)


def _heads(path: str, module: Any, inner: int, across: int) -> Group:
    """One head of each group of B and C is an item."""
    shared = module.num_heads // module.n_groups
    heads = torch.arange(module.num_heads).reshape(module.n_groups, shared).T  # (items, groups)
    run = torch.arange(module.head_dim)
    channels = (heads[..., None] * module.head_dim + run).flatten(1)
    steps = 2 * inner + across + heads
    slices = groups.rows(module.in_proj, torch.cat([channels, inner + channels, steps], 1))
    slices += groups.rows(module.conv1d, channels)
    slices += [Slice(Port(module, name), heads) for name in ("dt_bias", "A_log", "D")]
    if getattr(module, "mup_vector", None) is not None:
        places = torch.cat([channels, inner + channels, steps], 1)
        slices.append(Slice(Port(module, "mup_vector", 2), places))
    norm, separate = getattr(module, "norm", None), True
    gone = module.n_groups * module.head_dim
    counts = [
        Count(module, "num_heads", module.n_groups),
        *(Count(module, n, gone) for n in ("intermediate_size", "conv_dim") if n in vars(module)),
    ]
    if norm is not None and getattr(norm, "weight", None) is not None:
        slices += groups.rows(norm, channels)
        separate = False
        if isinstance(vars(norm).get("group_size"), int):
            counts.append(Count(norm, "group_size", gone // module.n_groups))
    slices += groups.columns(module.out_proj, channels)
    return Group(path, "heads", tuple(slices), tuple(counts), whole=True, separate=separate)


def _states(path: str, module: Any, inner: int) -> Group:
    n, shared = module.ssm_state_size, module.n_groups
    both = torch.arange(2 * shared * n).reshape(2 * shared, n).T  # (items, B and C of groups)
    slices = groups.rows(module.in_proj, 2 * inner + both)
    slices += groups.rows(module.conv1d, inner + both)
    if getattr(module, "mup_vector", None) is not None:
        slices.append(Slice(Port(module, "mup_vector", 2), 2 * inner + both))
    counts = [Count(module, "ssm_state_size"), Count(module, "conv_dim", 2 * shared)]
    if "groups_time_state_size" in vars(module):
        counts.append(Count(module, "groups_time_state_size", shared))
    return Group(path, "state", tuple(slices), tuple(counts))

"""Mamba's blocks: inner channels and states of a selective scan (Gu and Dao, 2023).

An inner channel is a row of x and one of the gate in in_proj, a channel of the convolution, a
column of x_proj, a row of dt_proj, of A and of D, and a column of out_proj. A state is a row of B
and one of C in x_proj, and a column of A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgekit.compress.pruning import groups
from edgekit.compress.pruning.groups import Block, Count, Group, Port, Slice

#: Attributes of a mixer of transformers, by what they count.
CHANNELS, STATES = ("intermediate_size",), ("ssm_state_size", "state")


@dataclass(frozen=True)
class Scan:
    """A selective scan: what makes its steps, B and C of its input, and its own tensors."""

    owner: Any
    path: str

    @property
    def states(self) -> int:
        """Of each channel."""
        return int(self.owner.A_log.shape[1])

    def channels(self, places: torch.Tensor) -> list[Slice]:
        """Slices of the channels that are scanned."""
        owner = self.owner
        found = groups.columns(owner.x_proj, places) + groups.rows(owner.dt_proj, places)
        return [*found, Slice(Port(owner, "A_log"), places), Slice(Port(owner, "D"), places)]

    def state_group(self) -> Group:
        """Its states."""
        owner, n = self.owner, self.states
        rank = owner.dt_proj.in_features
        slices = groups.rows(owner.x_proj, groups.grid(n, 1, rank, rank + n))
        slices.append(Slice(Port(owner, "A_log", 1), groups.grid(n, 1, 0)))
        norms = [getattr(owner, name, None) for name in ("b_layernorm", "c_layernorm")]
        for norm in norms:
            if norm is not None:
                slices += groups.rows(norm, groups.grid(n, 1, 0))
        counts = tuple(Count(owner, name) for name in STATES if name in vars(owner))
        plain = not any(norms) and not hasattr(owner, "rms_eps")
        return Group(self.path, "state", tuple(slices), counts, separate=plain)


def find(path: str, module: Any) -> Block | None:
    """The widths inside a Mamba block of transformers or of our reference models."""
    from edgekit.families.references.selective import Forwards, Gated, SelectiveScan

    if _has(module, "in_proj", "conv1d", "x_proj", "dt_proj", "A_log", "out_proj"):
        return _block(path, module, [Scan(module, path)], [module.conv1d])
    if not isinstance(module, Gated):
        return None
    inner = module.out_proj.in_features
    scans = [
        Scan(each, f"{path}.{name}")
        for name, each in module.scan.named_modules()
        if isinstance(each, SelectiveScan)
    ]
    convolutions = [
        each for each in module.scan.modules() if isinstance(each, nn.Conv1d | nn.Conv2d)
    ]
    norms = [each for each in module.scan.modules() if isinstance(each, nn.LayerNorm)]
    over_tokens = not isinstance(module.scan, Forwards) and any(
        type(each).__name__ == "AcrossChannels" for each in module.scan.modules()
    )
    if over_tokens or any(c.groups != inner for c in convolutions):
        return _opaque(path, module, scans)
    return _block(path, module, scans, convolutions, norms)


def _block(
    path: str,
    module: Any,
    scans: list[Scan],
    convolutions: Sequence[nn.Module],
    norms: Sequence[nn.Module] = (),
) -> Block:
    inner = module.out_proj.in_features
    places = groups.grid(inner, 1, 0)
    slices = groups.rows(module.in_proj, groups.grid(inner, 1, 0, inner))
    for layer in (*convolutions, *norms):
        slices += groups.rows(layer, places)
    for scan in scans:
        slices += scan.channels(places)
    slices += groups.columns(module.out_proj, places)
    counts = tuple(Count(module, name) for name in CHANNELS if name in vars(module))
    channels = Group(path, "channels", tuple(slices), counts, separate=not norms)
    found = (channels, *(scan.state_group() for scan in scans))
    return Block(path, module, found, *_ends(module))


def _opaque(path: str, module: Any, scans: list[Scan]) -> Block:
    """A scan over something else than the tokens' channels: only its states may shrink."""
    return Block(path, module, tuple(scan.state_group() for scan in scans), (), ())


def _ends(module: Any) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    return groups.inputs(module.in_proj), groups.outputs(module.out_proj)


def _has(module: Any, *names: str) -> bool:
    held = {**module._modules, **module._parameters}
    return all(held.get(name) is not None for name in names)

"""Layers of frames, (b, length, channels), that reference models which stream are made of.

A layer that remembers has ``remembers``, its states, and takes and keeps them in a ``Carried``;
where that is None, nothing was before the first frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.families.references.streaming import Carried
from edgekit.find import unknown
from edgekit.model import State
from edgekit.operators.linear_scan import linear_scan


class Activation(nn.Module):
    """ReLU, or neurons along the frames, (b, length, width).

    Args:
        name: of the neurons' potentials among the states.
        neuron: ``if``, ``lif`` or ``plif``; '' is ReLU.
        tau: of ``lif``, and where ``plif`` starts from.
    """

    def __init__(self, width: int, name: str, neuron: str, tau: float) -> None:
        super().__init__()
        self.unit: Any = _unit(width, neuron, tau)
        self.remembers = (State(f"potential_{name}", (1, width)),) if neuron else ()

    def forward(self, x: Tensor, carried: Carried | None = None) -> Tensor:
        """As the class says; None carries nothing into a whole sequence."""
        y: Tensor
        if carried is None or not self.remembers:
            y = self.unit(x)
            return y
        (potential,) = self.remembers
        y, after = self.unit.forward_with(x, carried.take(potential))
        carried.keep(potential, after)
        return y


class CausalConv(nn.Conv1d):
    """A convolution of each frame and those before it, (b, channels, length)."""

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__(channels, width, kernel, padding=kernel - 1, bias=False)

    def forward(self, x: Tensor, past: Tensor | None = None) -> Tensor:
        """Of frames after ``past``, (b, channels, kernel - 1); None is zeros."""
        if past is not None:
            return functional.conv1d(torch.cat([past, x], 2), self.weight)
        # Padded on both sides by the convolution itself, which rewrites see through.
        return super().forward(x)[:, :, : x.shape[2]]


class FrameNorm(nn.BatchNorm1d):
    """A batch norm of frames, (b, length, channels), over all frames of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Readout(nn.Module):
    """A leaky integrator, (b, length, width): r[t] = (1 - 1/T) r[t-1] + x[t] / T."""

    def __init__(self, width: int, frames: float) -> None:
        super().__init__()
        self.frames = frames
        self.remembers = (State("readout", (1, width)),)

    def forward(self, x: Tensor, carried: Carried | None = None) -> Tensor:
        """As the class says."""
        y: Tensor
        (state,) = self.remembers
        start = carried.take(state) if carried else torch.zeros_like(x[:, 0])
        decay = torch.full_like(x, 1 - 1 / self.frames)
        y, after = linear_scan(x / self.frames, decay, start)
        if carried:
            carried.keep(state, after)
        return y


def _unit(width: int, neuron: str, tau: float) -> nn.Module:
    """What an activation is."""
    from edgekit.quantize.spiking import neurons

    kinds: dict[str, Callable[[], nn.Module]] = {
        "": nn.ReLU,
        "if": lambda: neurons.IF(width),
        "lif": lambda: neurons.LIF(width, tau),
        "plif": lambda: neurons.PLIF(width, tau),
    }
    if neuron not in kinds:
        raise unknown("neuron", neuron, [kind for kind in kinds if kind])
    return kinds[neuron]()

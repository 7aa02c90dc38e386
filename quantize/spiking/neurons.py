"""Neurons: layers that fire, for networks that are trained as spiking ones.

A layer takes currents (b, L, channels), one step of the sequence after the other, and gives spikes,
0 or 1. For each channel, with the potential s, 0 before the first step,

    u[t] = decay s[t-1] + gain x[t],    spike[t] = u[t] >= threshold

and a spike takes the threshold off u[t] (soft reset, which loses nothing of the input) or sets it
to zero (hard). Kinds differ in decay and gain; ``operators/fire.py`` has the gradient. All steps at
once, in pieces, or one by one: the spikes are the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgekit.errors import EdgekitError
from edgekit.operators.fire import fire
from edgekit.quantize.spiking.surrogates import surrogate as derivative


class Neuron(nn.Module):
    """What all kinds share; a kind says its ``decay`` and its ``gain``, (channels,) each.

    Args:
        channels: how many neurons; sequences have one value for each at every step.
        threshold: the potential at which one fires, above zero.
        hard: whether a spike resets a potential to zero; else the threshold is taken off.
        surrogate: a spike's derivative in training, by its name in ``surrogates.SURROGATES``.
        width: of that derivative, in the unit of the potential.

    Raises:
        EdgekitError: the threshold or the width is not above zero, or there is no such surrogate.
    """

    decay: Tensor
    gain: Tensor
    threshold: Tensor

    def __init__(
        self,
        channels: int,
        threshold: float = 1.0,
        hard: bool = False,
        surrogate: str = "arctan",
        width: float = 1.0,
    ) -> None:
        super().__init__()
        _above(self, "threshold", threshold, 0, "A neuron fires when its potential reaches it.")
        _above(self, "width", width, 0, "It is how far from its threshold a neuron still learns.")
        derivative(surrogate)
        self.channels, self.hard, self.surrogate, self.width = channels, hard, surrogate, width
        self.register_buffer("threshold", torch.full((channels,), float(threshold)))

    def forward(self, x: Tensor) -> Tensor:
        """Spikes (b, L, channels) of currents (b, L, channels), from potentials of zero."""
        return self.forward_with(x, self.at_rest(x))[0]

    def forward_with(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The same from potentials (b, channels); spikes, and the potentials after the last step.

        Raises:
            EdgekitError: the currents or the potentials have another shape.
        """
        if not torch.compiler.is_compiling():  # sizes are symbols there
            self._check(x, state)
        spikes, last = fire(
            x,
            self.decay,
            self.gain,
            self.threshold,
            state,
            self.hard,
            self.surrogate,
            self.width,
        )
        return spikes, last

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: currents and potentials (b, channels) to spikes and potentials."""
        spikes, after = self.forward_with(x.unsqueeze(1), state)
        return spikes.squeeze(1), after

    def at_rest(self, x: Tensor) -> Tensor:
        """Potentials of zero (b, channels), in float32 at the least, for currents (b, ...)."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return x.new_zeros(x.shape[0], self.channels, dtype=dtype)

    def extra_repr(self) -> str:
        """For messages."""
        return f"channels={self.channels}, hard={self.hard}, surrogate={self.surrogate!r}"

    def _check(self, x: Tensor, state: Tensor) -> None:
        """Raise unless currents and potentials fit."""
        if x.dim() != 3 or x.shape[2] != self.channels:
            raise EdgekitError(
                f"{self}: its currents are {tuple(x.shape)}.",
                f"It takes (batch, steps, {self.channels}), and (batch, {self.channels}) a step.",
                "Put the channels last, or make it with as many as the layer before it gives.",
            )
        expected = (x.shape[0], self.channels)
        if state.shape != expected:
            raise EdgekitError(
                f"{self}: its state is {tuple(state.shape)}, not {expected}.",
                "A state holds one potential for each sample and channel.",
                "Pass on the state that the call before returned, or start from at_rest(x).",
            )


class IF(Neuron):
    """Integrate and fire: nothing leaks.

    u[t] = s[t-1] + x[t]

    Args: as ``Neuron``.
    """

    def __init__(
        self,
        channels: int,
        threshold: float = 1.0,
        hard: bool = False,
        surrogate: str = "arctan",
        width: float = 1.0,
    ) -> None:
        super().__init__(channels, threshold, hard, surrogate, width)
        self.register_buffer("decay", torch.ones(channels))
        self.register_buffer("gain", torch.ones(channels))


class LIF(Neuron):
    """Leaky integrate and fire.

    u[t] = (1 - 1/tau) s[t-1] + x[t] / tau

    Args:
        tau: the membrane's time constant, in steps, above 1. The others as ``Neuron``.
    """

    def __init__(
        self,
        channels: int,
        tau: float = 2.0,
        threshold: float = 1.0,
        hard: bool = False,
        surrogate: str = "arctan",
        width: float = 1.0,
    ) -> None:
        super().__init__(channels, threshold, hard, surrogate, width)
        _above(self, "tau", tau, 1, "After one step, 1 - 1/tau of a potential is left.")
        self.register_buffer("decay", torch.full((channels,), 1 - 1 / tau))
        self.register_buffer("gain", torch.full((channels,), 1 / tau))


class PLIF(Neuron):
    """Leaky integrate and fire whose time constant is learned, one for the layer.

    u[t] = (1 - 1/tau) s[t-1] + x[t] / tau,    1/tau = sigmoid(w)

    Fang et al., "Incorporating Learnable Membrane Time Constant to Enhance Learning of Spiking
    Neural Networks", ICCV 2021, equation 7.

    Args:
        tau: to start from, above 1. The others as ``Neuron``.
    """

    def __init__(
        self,
        channels: int,
        tau: float = 2.0,
        threshold: float = 1.0,
        hard: bool = False,
        surrogate: str = "arctan",
        width: float = 1.0,
    ) -> None:
        super().__init__(channels, threshold, hard, surrogate, width)
        _above(self, "tau", tau, 1, "After one step, 1 - 1/tau of a potential is left.")
        self.w = nn.Parameter(torch.tensor([-math.log(tau - 1)]))

    @property
    def gain(self) -> Tensor:  # type: ignore[override]
        """1/tau."""
        return torch.sigmoid(self.w).expand(self.channels)

    @property
    def decay(self) -> Tensor:  # type: ignore[override]
        """1 - 1/tau."""
        return 1 - self.gain


def _above(neuron: Neuron, name: str, value: float, least: float, why: str) -> None:
    """Raise unless a number is finite and above ``least``."""
    if not (math.isfinite(value) and value > least):
        raise EdgekitError(
            f"{type(neuron).__name__}: {name} is {value}.", why, f"Give a number above {least}."
        )

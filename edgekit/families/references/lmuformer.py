"""LMUFormer: keywords in speech, by convolutions and a Legendre memory (Liu et al., ICLR 2024).

With x[t] the features of a frame, and BN a batch norm:

    e[t] = ReLU(BN(conv(e[t-2], e[t-1], e[t])))    from e = x, ``depth`` times: patch embedding
    u[t] = ReLU(BN(U e[t]))
    m[t] = A m[t-1] + B u[t]                       each channel of u; see ``lmu.legendre``
    h[t] = ReLU(BN(W [m[t], e[t]]))
    g[t] = h[t] + P ReLU(BN(E h[t]))               the channel mixer
    r[t] = (1 - 1/T) r[t-1] + g[t] / T             a leaky integrator, T = ``readout``
    y[t] = head(r[t])

Nothing looks ahead, so one set of weights has two forms. In parallel, of a whole clip: the memory
is products with powers of A (``operators.lmu``), and the logits are those at the last frame. As a
stream, of frames as they come: a call takes and gives what is remembered, which has the same size
after any number of frames, and gives the logits at each.

Where we leave the paper: its convolutions look one frame ahead, the last has one more beside it,
the mixer's activation is a GELU, and the logits are the mean over all frames, not a leaky one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import EdgekitError
from edgekit.families.references.lmu import LONGEST, legendre
from edgekit.families.references.streaming import Carried
from edgekit.model import Dim, Input, Model, State
from edgekit.operators.linear_scan import linear_scan
from edgekit.operators.lmu import lmu


@dataclass(frozen=True)
class Config:
    """The size of the model.

    Attributes:
        features: of a frame, such as mel bands.
        window: frames that the memory holds, and the usual length of a clip.
        width: channels of a frame within the model.
        depth: convolutions of the patch embedding.
        kernel: frames that a convolution sees, the last of them its own; 2 or more.
        channels: that are remembered.
        order: coefficients of each of them.
        ratio: of the mixer's channels to ``width``.
        readout: T, in frames.
    """

    features: int = 40
    classes: int = 10
    window: int = 98
    width: int = 48
    depth: int = 2
    kernel: int = 3
    channels: int = 16
    order: int = 16
    ratio: int = 2
    readout: float = 10.0


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


class PatchEmbedding(nn.Module):
    """Frames (b, length, channels) to (b, length, width): each with those just before it."""

    def __init__(self, channels: int, config: Config, number: int) -> None:
        super().__init__()
        self.conv = CausalConv(channels, config.width, config.kernel)
        self.norm = nn.BatchNorm1d(config.width)
        self.act = nn.ReLU()
        self.state = State(f"conv_{number}", (1, channels, config.kernel - 1))

    def forward(self, x: Tensor, carried: Carried | None = None) -> Tensor:
        """As the class says; None carries nothing into a whole sequence."""
        x, past = x.transpose(1, 2), None
        if carried is not None:
            past = carried.take(self.state)
            carried.keep(self.state, torch.cat([past, x], 2)[:, :, -past.shape[2] :])
        y: Tensor = self.act(self.norm(self.conv(x, past)).transpose(1, 2))
        return y


class Dense(nn.Module):
    """A linear, its batch norm and its activation, frame by frame."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, width, bias=False)
        self.norm = FrameNorm(width)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(b, length, channels) to (b, length, width)."""
        y: Tensor = self.act(self.norm(self.linear(x)))
        return y


class Memory(nn.Module):
    """Frames (b, length, width) to frames that know those of the window before them."""

    A: Tensor
    B: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.enter = Dense(config.width, config.channels)
        self.leave = Dense(config.order * config.channels + config.width, config.width)
        for name, value in zip("AB", legendre(config.order, config.window), strict=True):
            self.register_buffer(name, value.float(), persistent=False)
        self.state = State("memory", (1, config.order, config.channels))

    def forward(self, x: Tensor, carried: Carried | None = None) -> Tensor:
        """As the class says."""
        u = self.enter(x)
        before = carried.take(self.state) if carried else u.new_zeros(len(u), *self.state.shape[1:])
        memory, after = lmu(u, self.A, self.B, before)
        if carried:
            carried.keep(self.state, after)
        y: Tensor = self.leave(torch.cat([memory.flatten(2), x], -1))
        return y


class Mixer(nn.Module):
    """Channels of a frame with each other, added to it."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.expand = Dense(width, ratio * width)
        self.project = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, length, width)."""
        y: Tensor = x + self.project(self.expand(x))
        return y


class Readout(nn.Module):
    """A leaky integrator, (b, length, width): r[t] = (1 - 1/T) r[t-1] + x[t] / T."""

    def __init__(self, width: int, frames: float) -> None:
        super().__init__()
        self.frames = frames
        self.state = State("readout", (1, width))

    def forward(self, x: Tensor, carried: Carried | None = None) -> Tensor:
        """As the class says."""
        before = carried.take(self.state) if carried else torch.zeros_like(x[:, 0])
        decay = torch.full_like(x, 1 - 1 / self.frames)
        y: Tensor
        y, after = linear_scan(x / self.frames, decay, before)
        if carried:
            carried.keep(self.state, after)
        return y


class LMUFormer(nn.Module):
    """Frames (b, length, features) to the logits at the last, (b, classes).

    Attributes:
        states: what a stream carries from call to call; see ``streaming``.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = [config.features, *[config.width] * config.depth]
        self.embed = nn.ModuleList(
            PatchEmbedding(channels, config, number)
            for number, channels in enumerate(widths[: config.depth])
        )
        self.memory = Memory(config)
        self.mixer = Mixer(config.width, config.ratio)
        self.readout = Readout(config.width, config.readout)
        self.head = nn.Linear(config.width, config.classes)
        self.states = (*(each.state for each in self.embed), self.memory.state, self.readout.state)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        logits: Tensor = self.head(self._read(x, None)[:, -1])
        return logits

    def forward_with(
        self, x: Tensor, before: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits at every frame after those that left the states, and the states then."""
        carried = Carried(before)
        logits: Tensor = self.head(self._read(x, carried))
        return logits, carried.after

    def _read(self, x: Tensor, carried: Carried | None) -> Tensor:
        for embed in self.embed:
            x = embed(x, carried)
        y: Tensor = self.readout(self.mixer(self.memory(x, carried)), carried)
        return y


def make(config: Config) -> Model:
    """The model, untrained; it takes clips of any length."""
    _check(config)
    length = Dim("length", 1, config.window, LONGEST * config.window)
    spec = Input("x", (1, length, config.features))
    return Model(LMUFormer(config).eval(), (spec,), ("logits",), "")


def _check(config: Config) -> None:
    """Raise for a size that is no model."""
    least = {"window": 1, "depth": 1, "kernel": 2, "channels": 1, "order": 1, "readout": 1.0}
    for name, bound in least.items():
        if getattr(config, name) < bound:
            raise EdgekitError(
                f"lmuformer: {name} is {getattr(config, name)}.", "", f"Give {bound} or more."
            )

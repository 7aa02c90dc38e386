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
after any number of frames, and gives the logits at each. The two agree to rounding.

With ``neuron``, every ReLU is a layer of neurons (``quantize/spiking/neurons.py``): each frame is a
step that they fire in, and their potentials are remembered too. The memory and the integrator stay
analog. From equal currents, neurons fire alike however frames are cut into calls. The currents are
sums of products, though, which a runtime may round otherwise for a call of another length: a
current that is that near to a threshold can then fire in one form and not in the other. Where all
sums are exact, as of multiples of a power of two, the forms are bit for bit the same.

Where we leave the paper: its convolutions look one frame ahead, the last has one more beside it,
the mixer's activation is a GELU, and the logits are the mean over all frames, not a leaky one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekit.errors import EdgekitError
from edgekit.families.references.frames import Activation, CausalConv, FrameNorm, Readout
from edgekit.families.references.lmu import legendre
from edgekit.families.references.streaming import LENGTH, Carried
from edgekit.model import Dim, Input, Model, State
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
        neuron: what fires in the place of the ReLUs: ``if``, ``lif`` or ``plif``; '' is none.
        tau: of ``lif``, and where ``plif`` starts from, in frames.
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
    neuron: str = ""
    tau: float = 2.0


class PatchEmbedding(nn.Module):
    """Frames (b, length, channels) to (b, length, width): each with those just before it."""

    def __init__(self, channels: int, config: Config, number: int) -> None:
        super().__init__()
        self.conv = CausalConv(channels, config.width, config.kernel)
        self.norm = nn.BatchNorm1d(config.width)
        self.act = Activation(config.width, str(number), config.neuron, config.tau)
        self.remembers = (State(f"conv_{number}", (1, channels, config.kernel - 1)),)

    def forward(self, x: Tensor, carried: Carried | None = None) -> Tensor:
        """As the class says."""
        x, past = x.transpose(1, 2), None
        if carried is not None:
            (state,) = self.remembers
            past = carried.take(state)
            carried.keep(state, torch.cat([past, x], 2)[:, :, -past.shape[2] :])
        y: Tensor = self.act(self.norm(self.conv(x, past)).transpose(1, 2), carried)
        return y


class Dense(nn.Module):
    """A linear, its batch norm and its activation, frame by frame."""

    def __init__(self, channels: int, width: int, config: Config, name: str) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, width, bias=False)
        self.norm = FrameNorm(width)
        self.act = Activation(width, name, config.neuron, config.tau)

    def forward(self, x: Tensor, carried: Carried | None = None) -> Tensor:
        """(b, length, channels) to (b, length, width)."""
        y: Tensor = self.act(self.norm(self.linear(x)), carried)
        return y


class Memory(nn.Module):
    """Frames (b, length, width) to frames that know those of the window before them."""

    A: Tensor
    B: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        remembered = config.order * config.channels
        self.enter = Dense(config.width, config.channels, config, "enter")
        self.leave = Dense(remembered + config.width, config.width, config, "leave")
        for name, value in zip("AB", legendre(config.order, config.window), strict=True):
            self.register_buffer(name, value.float(), persistent=False)
        self.remembers = (State("memory", (1, config.order, config.channels)),)

    def forward(self, x: Tensor, carried: Carried | None = None) -> Tensor:
        """As the class says."""
        u, (state,) = self.enter(x, carried), self.remembers
        start = carried.take(state) if carried else u.new_zeros(u.shape[0], len(self.A), u.shape[2])
        memory, after = lmu(u, self.A, self.B, start)
        if carried:
            carried.keep(state, after)
        y: Tensor = self.leave(torch.cat([memory.flatten(2), x], -1), carried)
        return y


class Mixer(nn.Module):
    """Channels of a frame with each other, added to it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        inner = config.ratio * config.width
        self.expand = Dense(config.width, inner, config, "expand")
        self.project = nn.Linear(inner, config.width)

    def forward(self, x: Tensor, carried: Carried | None = None) -> Tensor:
        """(b, length, width)."""
        y: Tensor = x + self.project(self.expand(x, carried))
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
        self.mixer = Mixer(config)
        self.readout = Readout(config.width, config.readout)
        self.head = nn.Linear(config.width, config.classes)
        parts = (vars(module) for module in self.modules())
        self.states: tuple[State, ...] = sum((p.get("remembers", ()) for p in parts), ())
        if config.neuron:
            self._excite(1.0 if config.neuron == "if" else config.tau)

    def _excite(self, current: float) -> None:
        """Start with currents that make neurons fire, untrained too.

        Args:
            current: its usual size; a neuron that leaks takes up 1/tau of one.
        """
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d) and module.running_var is not None:
                nn.init.constant_(module.weight, current)
                module.running_var.fill_(0.05)  # as of sums of spikes with weights not yet trained

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
        y: Tensor = self.readout(self.mixer(self.memory(x, carried), carried), carried)
        return y


def make(config: Config) -> Model:
    """The model, untrained; it takes clips of any length up to that of a stream's call."""
    _check(config)
    length = Dim("length", 1, config.window, max(config.window, LENGTH.most))
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

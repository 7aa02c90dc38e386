"""A classifier of sequences around the Legendre memory unit (Voelker, Kajic and Eliasmith, 2019).

In the parallel form of Chilkuri and Eliasmith (2021), where nothing but the memory is recurrent,

    u[t] = ReLU(U x[t] + c)
    m[t] = A m[t-1] + B u[t]            for each channel of u
    h[t] = ReLU(W [m[t], x[t]] + d)

The last h classifies. m[t] holds the last ``window`` values of u as coefficients of Legendre
polynomials; see ``legendre``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.model import Dim, Input, Model
from edgekit.operators.lmu import lmu

#: The longest sequence, in windows.
LONGEST = 4


@dataclass(frozen=True)
class Config:
    """The size of the model.

    Attributes:
        features: of a step of the sequence.
        window: steps that the memory holds, and the usual length.
        order: coefficients of a channel.
        channels: that are remembered.
    """

    features: int = 1
    classes: int = 10
    window: int = 784
    order: int = 64
    channels: int = 2
    width: int = 128


def legendre(order: int, window: float) -> tuple[Tensor, Tensor]:
    """A (order, order) and B (order,) of the memory, in float64.

    The memory obeys ``window dm/dt = a m + b u`` (equations 1 and 2 of the paper) with

        a[i, j] = (2 i + 1) (-1 if i < j else (-1)^(i - j + 1)),    b[i] = (2 i + 1) (-1)^i

    and then u(t - s) is about sum_i P_i(2 s / window - 1) m[i](t) for 0 <= s <= window, P_i being
    the Legendre polynomials. With u held over each step (zero-order hold), exactly

        [[A, B], [0, 1]] = exp([[a, b], [0, 0]] / window)
    """
    i = torch.arange(order, dtype=torch.float64)
    row, column = i[:, None], i[None]
    sign = torch.where(row < column, -1.0, (-1.0) ** (row - column + 1))
    both = torch.zeros(order + 1, order + 1, dtype=torch.float64)
    both[:order, :order] = (2 * row + 1) * sign
    both[:order, order] = (2 * i + 1) * (-1.0) ** i
    held = torch.linalg.matrix_exp(both / window)
    return held[:order, :order].contiguous(), held[:order, order].contiguous()


class LMU(nn.Module):
    """Sequences (b, length, features) to logits (b, classes)."""

    A: Tensor
    B: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        remembered = config.order * config.channels
        self.into_memory = nn.Linear(config.features, config.channels)
        self.hidden = nn.Linear(remembered + config.features, config.width)
        self.head = nn.Linear(config.width, config.classes)
        for name, value in zip("AB", legendre(config.order, config.window), strict=True):
            self.register_buffer(name, value.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        u = F.relu(self.into_memory(x))
        start = u.new_zeros(u.shape[0], self.A.shape[0], u.shape[2])
        _, memory = lmu(u, self.A, self.B, start)
        h = F.relu(self.hidden(torch.cat([memory.flatten(1), x[:, -1]], -1)))
        logits: Tensor = self.head(h)
        return logits


def make(config: Config) -> Model:
    """The model, untrained; it takes sequences of any length."""
    length = Dim("length", 1, config.window, LONGEST * config.window)
    spec = Input("x", (1, length, config.features))
    return Model(LMU(config).eval(), (spec,), ("logits",), "")

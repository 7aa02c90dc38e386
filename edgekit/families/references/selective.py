"""The layers of selective state-space models (Gu and Dao, 2023), as our reference models use them.

All take and give tokens of the shape (b, length, width).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.operators.mamba_scan import mamba_scan

#: Steps of the convolution before a scan.
TAPS = 4


class SelectiveScan(nn.Module):
    """S6: mamba_scan with delta, B and C made from x, and D x beside it."""

    def __init__(self, width: int, state: int) -> None:
        super().__init__()
        self.state, self.rank = state, math.ceil(width / 16)
        self.x_proj = nn.Linear(width, self.rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.rank, width)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(width, 1))
        self.D = nn.Parameter(torch.ones(width))
        # Steps between 0.001 and 0.1, spread evenly in the logarithm, through softplus's inverse.
        steps = torch.exp(torch.rand(width) * math.log(100) + math.log(0.001))
        self.dt_proj.bias.data = steps + torch.log(-torch.expm1(-steps))

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of the scan over the length, from a state of zero."""
        step, b, c = self.x_proj(x).split([self.rank, self.state, self.state], -1)
        delta = F.softplus(self.dt_proj(step))
        start = x.new_zeros(x.shape[0], self.state, x.shape[2])
        scanned, _ = mamba_scan(x, delta, -torch.exp(self.A_log), b, c, start)
        y: Tensor = scanned + self.D * x
        return y


class Forwards(nn.Module):
    """A convolution that sees no later token, SiLU, and the scan."""

    def __init__(self, width: int, state: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, TAPS, groups=width, padding=TAPS - 1)
        self.scan = SelectiveScan(width, state)

    def forward(self, x: Tensor) -> Tensor:
        """Token t of the result depends on tokens 0 to t."""
        mixed = self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        y: Tensor = self.scan(F.silu(mixed))
        return y


class BothWays(nn.Module):
    """The sum of one scan from the first token on and of another from the last token back."""

    def __init__(self, width: int, state: int) -> None:
        super().__init__()
        self.forwards, self.backwards = Forwards(width, state), Forwards(width, state)

    def forward(self, x: Tensor) -> Tensor:
        """Every token of the result depends on all tokens."""
        y: Tensor = self.forwards(x) + self.backwards(x.flip(1)).flip(1)
        return y


class Gated(nn.Module):
    """The frame of a Mamba block around a scan: W (scan(U x) SiLU(V x))."""

    def __init__(self, width: int, inner: int, scan: nn.Module) -> None:
        super().__init__()
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.scan = scan
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """``scan`` takes and gives tokens of the width ``inner``."""
        x, gate = self.in_proj(tokens).chunk(2, -1)
        y: Tensor = self.out_proj(self.scan(x) * F.silu(gate))
        return y

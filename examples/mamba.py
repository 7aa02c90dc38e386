"""A small Mamba for the digits, in plain PyTorch: the selective state-space model, Mamba-1.

    edgekit build examples.mamba:digits_mamba --checkpoint FOLDER/model.safetensors ...

An image (1, 32, 32) is read as 16 patches of 8x8. For a channel d of the inner width and a state
n, the scan over the steps t of the sequence is

    h[t] = exp(delta[t, d] A[d, n]) h[t-1] + delta[t, d] B[t, n] x[t, d]
    y[t, d] = sum_n C[t, n] h[t] + D[d] x[t, d]

with delta, B and C made from x. The loop over t has a fixed length, so torch.export unrolls it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.model import Input, Model, Preprocess

SIZE, PATCH = 32, 8
MEAN, STD = 0.3, 0.35


class Mixer(nn.Module):
    """The Mamba block: project, convolve, scan, gate, project."""

    def __init__(self, width: int, state: int = 8, taps: int = 4) -> None:
        super().__init__()
        inner, self.state, self.rank = 2 * width, state, math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, taps, groups=inner, padding=taps - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        # Steps between 0.001 and 0.1, spread evenly in the logarithm, through softplus's inverse.
        steps = torch.exp(torch.rand(inner) * math.log(100) + math.log(0.001))
        self.dt_proj.bias.data = steps + torch.log(-torch.expm1(-steps))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, length, width) to the same shape."""
        x, gate = self.in_proj(tokens).chunk(2, -1)
        x = self.conv1d(x.transpose(1, 2))[..., : tokens.shape[1]].transpose(1, 2)
        x = F.silu(x)
        step, b, c = self.x_proj(x).split([self.rank, self.state, self.state], -1)
        y = self.scan(x, F.softplus(self.dt_proj(step)), b, c)
        projected: Tensor = self.out_proj(y * F.silu(gate))
        return projected

    def scan(self, x: Tensor, delta: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """The recurrence above; x and delta (batch, length, inner), b and c (..., state)."""
        decay = torch.exp(delta[..., None] * -self.A_log.exp())
        added = (delta * x)[..., None] * b[:, :, None]
        h, outputs = added[:, 0], []
        for t in range(x.shape[1]):
            h = decay[:, t] * h + added[:, t] if t else h
            outputs.append((h * c[:, t, None]).sum(-1))
        return torch.stack(outputs, 1) + self.D * x


class Mamba(nn.Module):
    """Patches, residual Mamba blocks behind RMSNorm, and a linear head on the mean token."""

    def __init__(self, width: int = 64, depth: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, PATCH, PATCH)
        self.position = nn.Parameter(torch.randn((SIZE // PATCH) ** 2, width) * 0.02)
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-5) for _ in range(depth))
        self.mixers = nn.ModuleList(Mixer(width) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 1, 32, 32) to logits (batch, classes)."""
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            tokens = tokens + mixer(norm(tokens))
        logits: Tensor = self.head(self.norm(tokens).mean(1))
        return logits


def digits_mamba() -> Model:
    """The untrained model, and how images are made its input."""
    prepare = Preprocess((SIZE, SIZE), SIZE, "bicubic", (MEAN,), (STD,), channels=1)
    spec = Input("x", (1, 1, SIZE, SIZE))
    return Model(Mamba().eval(), (spec,), ("logits",), "digits_mamba", preprocess=prepare)

"""TSM2, MambaMixer's model of time series (Behrouz, Santacatterina and Zabih, 2024).

Time is scanned from the past on, the variables in both directions. Each mixer is behind a
normalisation over both. A series is first set to mean 0 and deviation 1 by its own past, and its
forecast set back (Kim et al., 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekit.families.references.mixing import MambaMixer, channel_mixer
from edgekit.families.references.selective import Forwards, Gated
from edgekit.model import Input, Model

#: Added to a variance: a series may be constant.
EPSILON = 1e-5


@dataclass(frozen=True)
class Config:
    """The size of the model.

    Attributes:
        length, horizon: time steps that are given, and that are forecast.
        variables: in each step.
        width: channels that are scanned over time.
        depth, state: in blocks, of a channel.
    """

    length: int = 512
    horizon: int = 96
    variables: int = 7
    width: int = 64
    depth: int = 2
    state: int = 16


class TSM2(nn.Module):
    """Series (b, length, variables) to their forecasts (b, horizon, variables)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        length, variables, state = config.length, config.variables, config.state

        def normed(mixer: nn.Module) -> nn.Module:
            return nn.Sequential(nn.LayerNorm([length, variables]), mixer)

        self.mixer = MambaMixer(
            [
                normed(Gated(variables, config.width, Forwards(config.width, state)))
                for _ in range(config.depth)
            ],
            [normed(channel_mixer(length, variables, state)) for _ in range(config.depth)],
        )
        self.head = nn.Linear(length, config.horizon)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        mean = x.mean(1, keepdim=True)
        deviation = torch.sqrt(((x - mean) ** 2).mean(1, keepdim=True) + EPSILON)
        mixed = self.mixer((x - mean) / deviation)
        forecast: Tensor = self.head(mixed.transpose(1, 2)).transpose(1, 2)
        return forecast * deviation + mean


def make(config: Config) -> Model:
    """The model, untrained."""
    spec = Input("x", (1, config.length, config.variables))
    return Model(TSM2(config).eval(), (spec,), ("forecast",), "")

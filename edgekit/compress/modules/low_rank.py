"""Low rank: a linear's weight as the product of two thin ones, y = U (V x) + b."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class LowRank(nn.Module):
    """In the place of a linear.

    Args:
        in_features, out_features: as of the linear.
        rank: outputs of V (``down``), and inputs of U (``up``).
        bias: whether it adds one.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=bias)

    def arguments(self) -> dict[str, Any]:
        """What it is made of."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "rank": self.rank,
            "bias": self.up.bias is not None,
        }

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        y: Tensor = self.up(self.down(x))
        return y

    def dense(self) -> Tensor:
        """The weight that it stands for, (out, in)."""
        return self.up.weight.detach() @ self.down.weight.detach()


def make(in_features: int, out_features: int, rank: int, bias: bool) -> LowRank:
    """One with random weights."""
    return LowRank(in_features, out_features, rank, bias)

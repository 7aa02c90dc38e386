"""codes: binary codes of vectors, by a hash of m anchors with a Gaussian kernel.

    h(x) = sign(sum_m A_m exp(-|x - x_m|^2 / 2 s^2) + o),    h in {-1, 1}^B

W. Liu et al., "Supervised Hashing with Kernels", CVPR 2012, as J. Liu et al., "EcoFormer", NeurIPS
2022, has it for queries and keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgekit.operators.sign_codes import sign_codes


class Codes(nn.Module):
    """The hash of queries or of keys, for each head.

    Args:
        heads, head_dim: of what enters.
        bits: B, of a code.
        anchors: m.
    """

    nearness: Tensor

    def __init__(self, heads: int, head_dim: int, bits: int, anchors: int) -> None:
        super().__init__()
        self.heads, self.head_dim, self.bits, self.count = heads, head_dim, bits, anchors
        self.anchors = nn.Parameter(torch.zeros(heads, anchors, head_dim))
        self.projection = nn.Parameter(torch.zeros(heads, anchors, bits))
        self.offset = nn.Parameter(torch.zeros(heads, 1, bits))
        self.register_buffer("nearness", torch.ones(heads, 1, 1))

    def arguments(self) -> dict[str, Any]:
        """What ``make`` takes."""
        sizes = {"heads": self.heads, "head_dim": self.head_dim}
        return {**sizes, "bits": self.bits, "anchors": self.count}

    def kernel(self, x: Tensor) -> Tensor:
        """How near each anchor is, 0 to 1, (..., heads, L, m) of (..., heads, L, head_dim).

        ``nearness`` is 1 / (sqrt(2) s): what is squared stays small, in float16 too.
        """
        x, anchors = x * self.nearness, self.anchors * self.nearness
        square = x.square().sum(-1, keepdim=True)
        own = anchors.square().sum(-1)[:, None]
        return torch.exp(2 * (x @ anchors.transpose(1, 2)) - square - own)

    def forward(self, x: Tensor) -> Tensor:
        """Codes (..., heads, L, B) of (..., heads, L, head_dim)."""
        y: Tensor = sign_codes(self.kernel(x) @ self.projection + self.offset)
        return y


def make(heads: int, head_dim: int, bits: int, anchors: int) -> Codes:
    """One that has learned nothing."""
    return Codes(heads, head_dim, bits, anchors)

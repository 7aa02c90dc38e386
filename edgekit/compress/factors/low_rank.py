"""Low rank by a singular value decomposition that knows what enters the layer.

With H = S S^T, the output's error is |(W - W') S|^2, which by Eckart and Young is least at rank r
for  W' = U_r diag(s_r) V_r^T S^-1,  U diag(s) V^T = W S;  what is left is the sum of the squares of
the other singular values. The whitening is that of X. Wang et al., "SVD-LLM", ICLR 2025, section
3.1; without data, S = I, and it is the plain decomposition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekit.compress.factors import Choice
from edgekit.compress.modules.low_rank import LowRank
from edgekit.quantize.methods.gptq import upper_root

#: Ranks are multiples of it, which kernels like.
ROUND = 8


@dataclass(frozen=True)
class LowRankFit:
    """A linear's decomposition, of which any rank can be taken.

    Attributes:
        layer: the linear.
        left: U sqrt(s), (out, R).
        right: sqrt(s) V^T S^-1, (R, in).
        errors: what each rank from 0 on leaves, (R + 1,).
    """

    layer: nn.Linear
    left: Tensor
    right: Tensor
    errors: Tensor

    def choices(self) -> list[Choice]:
        """The ranks that take fewer bytes than the layer, and the layer as it is."""
        weight = self.layer.weight
        each = sum(weight.shape) * weight.element_size()
        whole = weight.numel() * weight.element_size()
        ranks = range(ROUND, len(self.errors), ROUND)
        found = [Choice(r, r * each, float(self.errors[r])) for r in ranks if r * each < whole]
        return [*found, Choice(0, whole, 0.0)]

    def made(self, rank: int) -> LowRank:
        """The layer at a rank."""
        layer = self.layer
        out = LowRank(layer.in_features, layer.out_features, rank, layer.bias is not None)
        out = out.to(layer.weight)
        with torch.no_grad():
            out.down.weight.copy_(self.right[:rank])
            out.up.weight.copy_(self.left[:, :rank])
            if layer.bias is not None:
                out.up.bias.copy_(layer.bias)
        return out


def fit(layer: nn.Linear, gram: Tensor) -> LowRankFit:
    """Decompose a linear.

    Args:
        gram: H, positive definite, (in, in).
    """
    root = upper_root(gram)
    weight = layer.weight.detach().double()
    left, values, right = torch.linalg.svd(weight @ root, full_matrices=False)
    scale = values.sqrt()
    unwhitened = torch.linalg.solve_triangular(root, right, upper=True, left=False)
    energy = values.square()
    left_over = energy.flip(0).cumsum(0).flip(0) / energy.sum().clamp_min(1e-300)
    errors = torch.cat([left_over, left_over.new_zeros(1)])
    kept = layer.weight.dtype
    return LowRankFit(
        layer, (left * scale).to(kept), (scale[:, None] * unwhitened).to(kept), errors
    )

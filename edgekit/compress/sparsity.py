"""Sparsity 2:4: of every four weights in a row, along the inputs, two or more are zero.

The tensor cores of Ampere and later skip the zeros. Of a convolution, the four are input channels
at one place of the kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: Weights in a group, and how many of them may differ from zero.
GROUP, KEPT = 4, 2
#: Columns between two updates of all that are left.
_BLOCK = 128


def is_sparse(weight: Any) -> bool:
    """Whether a tensor or array (out, in, ...) is sparse 2:4 along its second axis.

    One that holds zeros alone is not: it has no pattern to keep.
    """
    if weight.ndim < 2 or weight.shape[1] == 0 or weight.shape[1] % GROUP:
        return False
    held = (weight != 0).reshape(weight.shape[0], weight.shape[1] // GROUP, GROUP, -1)
    return bool(held.any()) and bool((held.sum(2) <= KEPT).all())


def largest(scores: torch.Tensor) -> torch.Tensor:
    """True at the two largest of every four scores along the last axis."""
    import torch

    groups = scores.reshape(*scores.shape[:-1], -1, GROUP)
    chosen = torch.zeros_like(groups, dtype=torch.bool)
    return chosen.scatter(-1, groups.topk(KEPT).indices, True).flatten(-2)


def by_magnitude(weight: torch.Tensor) -> torch.Tensor:
    """The weight (..., K) with the two smallest of every four set to zero."""
    return weight * largest(weight.abs())


def by_reconstruction(weight: torch.Tensor, gram: torch.Tensor, damping: float) -> torch.Tensor:
    """The weight (out, K), sparse, with what is left moved to make up for what went.

    E. Frantar and D. Alistarh, "SparseGPT", ICML 2023, algorithm 1. With H = R R^T, R upper
    triangular, and F = R / diag(R) - I, the output's error is

        e^T H e = sum_j R_jj^2 (e_j + sum_(i<j) e_i F_ij)^2,   e = w - q.

    From the first input to the last, q_j = w_j + sum_(i<j) e_i F_ij leaves no term j, and q_j = 0
    leaves one of R_jj^2 times its square: the two of every four that leave least are set to zero.

    Args:
        gram: H, the mean of x x^T over the layer's inputs, (K, K).
        damping: share of H's mean diagonal that is added to the diagonal.
    """
    import torch

    from edgekit.quantize.methods.gptq import upper_root

    old, hessian = weight.detach().double(), gram.double().clone()
    diagonal = hessian.diagonal()
    diagonal.add_(damping * float(diagonal.mean()) + 1e-30)
    root = upper_root(hessian)
    feedback = (root / root.diagonal()).triu(1)
    new, error = torch.zeros_like(old), torch.zeros_like(old)
    for start in range(0, old.shape[1], _BLOCK):
        end = min(start + _BLOCK, old.shape[1])
        wanted = old[:, start:end] + error[:, :start] @ feedback[:start, start:end]
        for first in range(start, end, GROUP):
            here = slice(first - start, first - start + GROUP)
            kept = largest((wanted[:, here] * root.diagonal()[first : first + GROUP]).square())
            for place in range(GROUP):
                j = first + place
                new[:, j] = wanted[:, j - start] * kept[:, place]
                error[:, j] = old[:, j] - new[:, j]
                wanted += error[:, j, None] * feedback[j, start:end]
    return new.to(weight.dtype)

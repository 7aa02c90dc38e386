"""lmu: the Legendre memory unit's memory (Voelker, Kajic and Eliasmith, 2019, equation 2).

    memory[t, n, d] = sum_m A[n, m] memory[t-1, m, d] + B[n] x[t, d]

A and B are constants, already discretised.
"""

from __future__ import annotations

import torch

from edgekit.operators import wide


@torch.library.custom_op("edgekit::lmu", mutates_args=())
def lmu(
    x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The memory after every step, and after the last.

    Args:
        x: (b, L, d).
        A: (n, n).
        B: (n,).
        state: to start from, (b, n, d).

    Returns:
        memory (b, L, n, d) and the state after the last step (b, n, d).
    """
    u, a, b, m = wide(x, A, B, state)
    m, outputs = m.clone(), []
    for t in range(x.shape[1]):
        m = torch.matmul(a, m) + b[:, None] * u[:, t, None]
        outputs.append(m)
    return torch.stack(outputs, 1).to(x.dtype), m.to(state.dtype)


@lmu.register_fake
def _(
    x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, length, channels = x.shape
    return x.new_empty(batch, length, A.shape[0], channels), state.new_empty(state.shape)

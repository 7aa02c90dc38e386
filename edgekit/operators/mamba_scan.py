"""mamba_scan: the selective scan of Mamba (Gu and Dao, 2023, equations 2 and 3).

    state[t, n, d] = exp(delta[t, d] A[d, n]) state[t-1, n, d] + delta[t, d] x[t, d] B[t, n]
    y[t, d]        = sum_n C[t, n] state[t, n, d]

The state is kept as (n, d), channels last: a step's work is then contiguous.
"""

from __future__ import annotations

import torch

from edgekit.operators import wide


@torch.library.custom_op("edgekit::mamba_scan", mutates_args=())
def mamba_scan(
    x: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs and the last state.

    Args:
        x: (b, L, d).
        delta: the steps, positive, (b, L, d).
        A: negative, (d, n).
        B, C: (b, L, n).
        state: to start from, (b, n, d).

    Returns:
        y (b, L, d) and the state after the last step (b, n, d).
    """
    u, step, a, b, c, h = wide(x, delta, A, B, C, state)
    h, a, outputs = h.clone(), a.t().contiguous(), []
    for t in range(x.shape[1]):
        row = step[:, t, None]
        h = torch.exp(row * a) * h + (row * u[:, t, None]) * b[:, t, :, None]
        outputs.append(torch.matmul(c[:, t, None], h))
    return torch.cat(outputs, 1).to(x.dtype), h.to(state.dtype)


@mamba_scan.register_fake
def _(
    x: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), state.new_empty(state.shape)

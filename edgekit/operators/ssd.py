"""ssd: the state-space dual of Mamba-2 (Dao and Gu, 2024, equation 16); gated linear attention.

    state[t] = exp(decay[t]) state[t-1] + B[t]^T x[t]        (n, p), for each head
    y[t]     = C[t] state[t]                                 (p)

Heads share B and C in groups: head i belongs to group i // (h / g).
"""

from __future__ import annotations

import torch

from edgekit.operators import wide


@torch.library.custom_op("edgekit::ssd", mutates_args=())
def ssd(
    x: torch.Tensor,
    decay: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs and the last state.

    Args:
        x: values, in Mamba-2 already times the step, (b, L, h, p).
        decay: logarithm of what is kept of the state, at most 0, (b, L, h).
        B, C: keys and queries, (b, L, g, n).
        state: to start from, (b, h, n, p).

    Returns:
        y (b, L, h, p) and the state after the last step (b, h, n, p).
    """
    u, log_decay, b, c, s = wide(x, decay, B, C, state)
    heads = x.shape[2] // B.shape[2]
    b, c = (value.repeat_interleave(heads, 2) for value in (b, c))
    kept, s, outputs = torch.exp(log_decay), s.clone(), []
    for t in range(x.shape[1]):
        s = kept[:, t, :, None, None] * s + b[:, t, ..., None] * u[:, t, :, None]
        outputs.append(torch.matmul(c[:, t, :, None], s).squeeze(-2))
    return torch.stack(outputs, 1).to(x.dtype), s.to(state.dtype)


@ssd.register_fake
def _(
    x: torch.Tensor,
    decay: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), state.new_empty(state.shape)

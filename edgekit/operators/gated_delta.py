"""gated_delta: the gated delta rule (Yang, Kautz and Hatamizadeh, 2024, equation 10).

    kept     = exp(decay[t]) state[t-1]                                     (k, v), for each head
    state[t] = kept + key[t]^T beta[t] (value[t] - key[t] kept)
    y[t]     = query[t] state[t]
"""

from __future__ import annotations

import torch

from edgekit.operators import wide


@torch.library.custom_op("edgekit::gated_delta", mutates_args=())
def gated_delta(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs and the last state.

    Args:
        query: already scaled, (b, L, h, k).
        key: of norm 1 at most, (b, L, h, k).
        value: (b, L, h, v).
        decay: logarithm of what is kept of the state, at most 0, (b, L, h).
        beta: how much of the old value is replaced, in [0, 1], (b, L, h).
        state: to start from, (b, h, k, v).

    Returns:
        y (b, L, h, v) and the state after the last step (b, h, k, v).
    """
    q, k, v, log_decay, rate, s = wide(query, key, value, decay, beta, state)
    kept, s, outputs = torch.exp(log_decay), s.clone(), []
    for t in range(query.shape[1]):
        s = kept[:, t, :, None, None] * s
        found = torch.matmul(k[:, t, :, None], s)
        change = rate[:, t, :, None, None] * (v[:, t, :, None] - found)
        s = s + k[:, t, ..., None] * change
        outputs.append(torch.matmul(q[:, t, :, None], s).squeeze(-2))
    return torch.stack(outputs, 1).to(value.dtype), s.to(state.dtype)


@gated_delta.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    return value.new_empty(value.shape), state.new_empty(state.shape)

"""gated_delta: the gated delta rule (Yang, Kautz and Hatamizadeh, 2024, equation 10).

kept     = exp(decay[t]) state[t-1]                                     (k, v), for each head
state[t] = kept + key[t]^T beta[t] (value[t] - key[t] kept)
y[t]     = query[t] state[t]

Steps are taken in chunks, in which what each changes is the solution of a triangular system
(section 3.3 there).
"""

from __future__ import annotations

import torch

from edgekit.operators import chunks, decays, wide

CHUNK = 64


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
    *values, s = wide(query, key, value, decay, beta, state)
    outputs = []
    for parts in chunks(CHUNK, *values):
        q, k, v, log, rate = (part.transpose(1, 2) for part in parts)  # heads before steps
        since, between = decays(log)
        rate = rate[..., None]
        mixed = rate * torch.matmul(k, k.mT) * between
        wanted = rate * (v - since * torch.matmul(k, s))
        change = torch.linalg.solve_triangular(mixed, wanted, upper=False, unitriangular=True)
        seen = torch.matmul(q, k.mT) * between
        outputs.append(torch.matmul(seen, change) + since * torch.matmul(q, s))
        s = since[..., -1:, :] * s + torch.matmul(k.mT, between[..., -1, :, None] * change)
    y = torch.cat(outputs, 2).transpose(1, 2)
    return y.to(value.dtype).contiguous(), s.to(state.dtype).contiguous()


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

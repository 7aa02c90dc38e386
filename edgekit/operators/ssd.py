"""ssd: the state-space dual of Mamba-2 (Dao and Gu, 2024, equation 16); gated linear attention.

    state[t] = exp(decay[t]) state[t-1] + B[t]^T x[t]        (n, p), for each head
    y[t]     = C[t] state[t]                                 (p)

Heads share B and C in groups: head i belongs to group i // (h / g). Steps are taken in chunks, in
which they are products of matrices (section 6 there).
"""

from __future__ import annotations

import torch

from edgekit.operators import chunks, decays, wide

CHUNK = 64


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
    u, log, b, c, s = wide(x, decay, B, C, state)
    shared, outputs = x.shape[2] // B.shape[2], []
    for parts in chunks(CHUNK, u, log, b, c):
        v, a, k, q = (part.transpose(1, 2) for part in parts)  # heads before steps
        k, q = (part.repeat_interleave(shared, 1) for part in (k, q))
        since, between = decays(a)
        seen = torch.matmul(q, k.mT) * between
        outputs.append(torch.matmul(seen, v) + since * torch.matmul(q, s))
        s = since[..., -1:, :] * s + torch.matmul(k.mT, between[..., -1, :, None] * v)
    y = torch.cat(outputs, 2).transpose(1, 2)
    return y.to(x.dtype).contiguous(), s.to(state.dtype)


@ssd.register_fake
def _(
    x: torch.Tensor,
    decay: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), state.new_empty(state.shape)

"""mamba_scan: the selective scan of Mamba (Gu and Dao, 2023, equations 2 and 3).

    state[t, n, d] = exp(delta[t, d] A[d, n]) state[t-1, n, d] + delta[t, d] x[t, d] B[t, n]
    y[t, d]        = sum_n C[t, n] state[t, n, d]

The state is kept as (n, d), channels last: a step's work is then contiguous.
"""

from __future__ import annotations

from typing import Any

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


def _save(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The states once more, and from the last to the first the gradient g of each:

    g[t] = C[t] dy[t] + exp(delta[t+1] A) g[t+1]
    """
    x, delta, A, B, C, start = ctx.saved_tensors
    u, step, a, b, c, h = wide(x, delta, A, B, C, start)
    dy, g = wide(*gradients)
    a, states, pushed = a.t().contiguous(), [h], step * u
    for t in range(u.shape[1]):
        kept = torch.exp(step[:, t, None] * a)
        states.append(kept * states[-1] + pushed[:, t, None] * b[:, t, :, None])
    to_pushed, to_step, to_b, to_c = (torch.empty_like(v) for v in (u, u, b, c))
    to_a = torch.zeros_like(a)
    for t in reversed(range(u.shape[1])):
        row = step[:, t, None]
        to_c[:, t] = torch.matmul(states[t + 1], dy[:, t, :, None]).squeeze(-1)
        g = g + c[:, t, :, None] * dy[:, t, None]
        to_b[:, t] = torch.matmul(g, pushed[:, t, :, None]).squeeze(-1)
        to_pushed[:, t] = torch.matmul(b[:, t, None], g).squeeze(1)
        g = g * torch.exp(row * a)
        exponent = g * states[t]
        to_step[:, t] = (exponent * a).sum(1)
        to_a += (exponent * row).sum(0)
    to_step += to_pushed * u
    found = (to_pushed * step, to_step, to_a.t(), to_b, to_c, g)
    return tuple(v.to(i.dtype) for v, i in zip(found, ctx.saved_tensors, strict=True))


mamba_scan.register_autograd(_backward, setup_context=_save)

"""linear_scan: a recurrence of independent channels, as in RG-LRU (De et al., 2024, equation 4).

y[t, d] = decay[t, d] y[t-1, d] + x[t, d]
"""

from __future__ import annotations

from typing import Any

import torch

from edgekit.operators import wide


@torch.library.custom_op("edgekit::linear_scan", mutates_args=())
def linear_scan(
    x: torch.Tensor, decay: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs and the last of them.

    Args:
        x: (b, L, d).
        decay: in [0, 1], (b, L, d).
        state: to start from, (b, d).

    Returns:
        y (b, L, d) and the state after the last step (b, d).
    """
    u, a, h = wide(x, decay, state)
    h, outputs = h.clone(), []
    for t in range(x.shape[1]):
        h = a[:, t] * h + u[:, t]
        outputs.append(h)
    return torch.stack(outputs, 1).to(x.dtype), h.to(state.dtype)


@linear_scan.register_fake
def _(
    x: torch.Tensor, decay: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), state.new_empty(state.shape)


def _save(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[0])


def _backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """g[t] = dy[t] + decay[t+1] g[t+1], the gradient with respect to y[t]."""
    *inputs, outputs = ctx.saved_tensors
    _, decay, start, y = wide(*inputs, outputs)
    pushed, g = wide(*gradients)
    found = []
    for t in range(pushed.shape[1] - 1, -1, -1):
        g = pushed[:, t] + g
        found.append(g)
        g = decay[:, t] * g
    each = torch.stack(found[::-1], 1)
    before = torch.cat([start[:, None], y[:, :-1]], 1)
    return tuple(v.to(i.dtype) for v, i in zip((each, each * before, g), inputs, strict=True))


linear_scan.register_autograd(_backward, setup_context=_save)

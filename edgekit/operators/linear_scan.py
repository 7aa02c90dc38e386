"""linear_scan: a recurrence of independent channels, as in RG-LRU (De et al., 2024, equation 4).

y[t, d] = decay[t, d] y[t-1, d] + x[t, d]
"""

from __future__ import annotations

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

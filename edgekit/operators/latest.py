"""latest: the last positions of a cache, or all of them where there are fewer.

    y = x[:, :, max(S - count, 0):]

A slice would do, but that torch.export settles for one of the two cases while it traces.
"""

from __future__ import annotations

import torch


@torch.library.custom_op("edgekit::latest", mutates_args=())
def latest(x: torch.Tensor, count: int) -> torch.Tensor:
    """The last positions.

    Args:
        x: (b, g, S, d).
        count: how many at most, 1 or more.

    Returns:
        (b, g, min(S, count), d).
    """
    return x[:, :, -count:].clone()


@latest.register_fake
def _(x: torch.Tensor, count: int) -> torch.Tensor:
    batch, groups, size, width = x.shape
    kept = torch.sym_min(size, count)  # type: ignore[no-untyped-call]
    return x.new_empty(batch, groups, kept, width)

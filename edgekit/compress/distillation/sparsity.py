"""Sparsity: zeros that training must keep, since an engine or a file format counts on them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

#: Of each so many weights in a row at most half are not zero.
GROUP = 4


def masks(module: nn.Module) -> dict[nn.Parameter, Tensor]:
    """1 where a weight may change, for each weight that is sparse 2:4; the others are left out."""
    found = {}
    for weight in module.parameters():
        if weight.is_floating_point() and weight.dim() > 1 and is_sparse(weight):
            found[weight] = (weight.detach() != 0).to(weight.dtype)
    return found


def is_sparse(weight: Tensor) -> bool:
    """Whether every 4 neighbours hold two zeros or more, along the inputs or the last axis.

    A weight of zeros alone is one that has yet to learn, and is not.
    """
    zero = weight.detach() == 0
    if bool(zero.all()):
        return False
    return any(_paired(zero.movedim(axis, -1)) for axis in {1, weight.dim() - 1})


def _paired(zero: Tensor) -> bool:
    if zero.shape[-1] % GROUP:
        return False
    return bool((zero.reshape(*zero.shape[:-1], -1, GROUP).sum(-1) >= GROUP // 2).all())


@torch.no_grad()
def keep(kept: Mapping[nn.Parameter, Tensor]) -> None:
    """Take the gradients of what must stay zero."""
    for weight, mask in kept.items():
        if weight.grad is not None:
            weight.grad.mul_(mask)

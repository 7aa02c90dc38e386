"""Sparsity: zeros that training must keep, since an engine or a file format counts on them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgekit.compress.sparsity import is_sparse


def masks(module: nn.Module) -> dict[nn.Parameter, Tensor]:
    """1 where a weight may change, for each weight that is sparse 2:4; the others are left out."""
    found = {}
    for weight in module.parameters():
        if weight.is_floating_point() and weight.dim() > 1 and is_sparse(weight):
            found[weight] = (weight.detach() != 0).to(weight.dtype)
    return found


@torch.no_grad()
def keep(kept: Mapping[nn.Parameter, Tensor]) -> None:
    """Take the gradients of what must stay zero."""
    for weight, mask in kept.items():
        if weight.grad is not None:
            weight.grad.mul_(mask)

"""Operators: what enters an exported graph whole, to be lowered by each target in its own form.

One file each: the equation, what it computes in PyTorch, and its shapes. A recurrence takes the
state that it starts from and returns the one that it ends in; it is computed in float32 at the
least. Shapes: b batch, L length, d channels, n states, h heads, g groups of heads.
"""

from __future__ import annotations

import torch


def wide(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors in float32, or in float64 where the first is."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return [tensor.to(dtype) for tensor in tensors]

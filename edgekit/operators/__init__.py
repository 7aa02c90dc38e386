"""Operators: what enters an exported graph whole, to be lowered by each target in its own form.

One file each: the equation, what it computes in PyTorch, and its shapes. A recurrence takes the
state that it starts from and returns the one that it ends in; it is computed in float32 at the
least. Shapes: b batch, L length, d channels, n states, h heads, g groups of heads.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

#: Those that give levels: a difference in rounding, however small, can become one of a level.
DISCRETE = ("edgekit.qcfs.default", "edgekit.fire.default", "edgekit.sign_codes.default")


def wide(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors in float32, or in float64 where the first is."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return [tensor.to(dtype) for tensor in tensors]


def chunks(size: int, *values: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Of values (b, L, ...), ``size`` steps at a time."""
    for start in range(0, values[0].shape[1], size):
        yield [value[:, start : start + size] for value in values]


def decays(log: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What is kept within a chunk of steps, from logarithms (..., L).

    Sums between two steps are made one by one, not as differences of sums from the chunk's start:
    those lose all digits behind a step that keeps nothing.

    Returns:
        From the chunk's start to each step (..., L, 1); and from column to row (..., L, L), zero
        above the diagonal.
    """
    steps = log[..., None]
    later = torch.ones(log.shape[-1], log.shape[-1], dtype=log.dtype).tril(-1)
    between = torch.exp(torch.cumsum(steps * later, -2)).tril()
    return torch.exp(torch.cumsum(steps, -2)), between

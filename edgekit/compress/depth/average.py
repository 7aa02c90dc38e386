"""Averaging: a kept block starts as the mean of itself and the dropped blocks that it stands for.

    w_k = 1 / (1 + |D_k|) (w_k + sum_{d in D_k} w_d)

with D_k the dropped blocks that are nearest to the kept block k (local weight averaging of Yang et
al., Amber-Image, 2026). Of two as near, the earlier one stands for a dropped block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn


def stood_for(
    kept: Sequence[int], dropped: Iterable[int], alike: Callable[[int, int], bool]
) -> dict[int, list[int]]:
    """The dropped blocks of each kept one, by place; those unlike every kept one are no one's."""
    found: dict[int, list[int]] = {}
    for place in dropped:
        possible = [each for each in kept if alike(each, place)]
        if possible:
            nearest = min(possible, key=lambda each: (abs(each - place), each))
            found.setdefault(nearest, []).append(place)
    return found


def alike(first: nn.Module, second: nn.Module) -> bool:
    """Whether two blocks are of one class, and their tensors of the same shapes."""
    if type(first) is not type(second):
        return False
    return {n: t.shape for n, t in _values(first)} == {n: t.shape for n, t in _values(second)}


@torch.no_grad()
def average(block: nn.Module, others: Sequence[nn.Module]) -> None:
    """Set a block's weights to the mean of its own and the others'."""
    values = [dict(_values(other)) for other in others]
    for name, own in _values(block):
        if own.is_floating_point():
            total = sum((other[name] for other in values), start=own)
            own.copy_(total / (1 + len(values)))


def _values(block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from block.named_parameters()
    yield from block.named_buffers()

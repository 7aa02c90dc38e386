"""Widths: which items go first, over all groups of a model together.

A group is cut in steps from one allowed width to the next, its least important items first. The
steps of all groups are put in one order by what they lose for what they save, as in a knapsack
whose items may be taken in part; a budget is then a length along that order.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from edgekit.compress.pruning.groups import Group

#: The least width of a group, as a share of its own; never below one item.
LEAST = 1 / 8


@dataclass(frozen=True)
class Step:
    """Items of one group that go together.

    Attributes:
        loss: their importance.
        saved: what they cost.
    """

    group: Group
    items: tuple[int, ...]
    loss: float
    saved: float


def allowed(items: int, multiple: int) -> list[int]:
    """Widths that a group may have, its own first, then multiples down to the least.

    >>> allowed(20, 8)
    [20, 16, 8]
    >>> allowed(3, 1)
    [3, 2, 1]
    >>> allowed(6, 8)
    [6]
    """
    least = math.ceil(max(items * LEAST, 1) / multiple) * multiple
    below = range((items - 1) // multiple * multiple, least - 1, -multiple)
    return [items, *below]


def path(
    scores: Mapping[Group, torch.Tensor],
    costs: Callable[[Group], float],
    multiple: Callable[[Group], int],
) -> list[Step]:
    """All steps, the best bargain first; those of a group keep their order.

    Args:
        scores: importance of every item.
        costs: what an item of a group costs, in the budget's unit.
        multiple: what the width of a group must be a multiple of.
    """
    waiting: list[tuple[float, int, int]] = []
    steps = [_steps(group, own, costs(group), multiple(group)) for group, own in scores.items()]
    for place, own in enumerate(steps):
        if own:
            heapq.heappush(waiting, (_price(own[0]), place, 0))
    order = []
    while waiting:
        _, place, number = heapq.heappop(waiting)
        order.append(steps[place][number])
        if number + 1 < len(steps[place]):
            heapq.heappush(waiting, (_price(steps[place][number + 1]), place, number + 1))
    return order


def removals(steps: Sequence[Step]) -> dict[Group, torch.Tensor]:
    """What the steps take out of each group, ascending."""
    found: dict[Group, list[int]] = {}
    for step in steps:
        found.setdefault(step.group, []).extend(step.items)
    return {group: torch.tensor(sorted(items)) for group, items in found.items()}


def _steps(group: Group, scores: torch.Tensor, cost: float, multiple: int) -> list[Step]:
    order = scores.argsort(stable=True).tolist()
    sizes = allowed(group.items, multiple)
    found, start = [], 0
    for before, after in pairwise(sizes):
        items = tuple(order[start : start + before - after])
        start += len(items)
        loss = float(scores[list(items)].sum())
        found.append(Step(group, items, loss, cost * len(items)))
    return found


def _price(step: Step) -> float:
    return step.loss / max(step.saved, 1e-30)

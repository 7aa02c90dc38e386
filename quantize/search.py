"""Search: which modules to quantize, by what each costs in accuracy and brings in speed or size.

Modules are taken in the order of damage for each unit gained, least first. Each step is one point
of a front on which no point is both better and cheaper than another; the points are then tried in
earnest, by bisection, since what is predicted for several modules is only the root of the sum of
their squares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True)
class Candidate:
    """A module that could be quantized.

    Attributes:
        damage: the model's drift with this module alone quantized.
        milliseconds: what quantizing it saves in a call; negative if it costs.
        megabytes: what it saves in size.
    """

    module: str
    damage: float
    milliseconds: float
    megabytes: float


@dataclass(frozen=True)
class Point:
    """A choice of precisions.

    Attributes:
        modules: those quantized, in the order in which they were taken.
        drift: predicted, of the model's outputs.
        milliseconds: predicted, of a call.
        megabytes: predicted, of the weights.
    """

    modules: tuple[str, ...]
    drift: float
    milliseconds: float
    megabytes: float


def front(
    candidates: Sequence[Candidate], milliseconds: float, megabytes: float, by_size: bool = False
) -> tuple[Point, ...]:
    """From all in float, the first point, to all quantized that gain anything.

    Args:
        milliseconds, megabytes: of the float model.
        by_size: gain is in megabytes; else in milliseconds.
    """

    def gain(candidate: Candidate) -> float:
        return candidate.megabytes if by_size else candidate.milliseconds

    useful = [candidate for candidate in candidates if gain(candidate) > 0]
    ordered = sorted(useful, key=lambda candidate: candidate.damage**2 / gain(candidate))
    return tuple(
        Point(
            modules=tuple(candidate.module for candidate in taken),
            drift=sqrt(sum(candidate.damage**2 for candidate in taken)),
            milliseconds=milliseconds - sum(candidate.milliseconds for candidate in taken),
            megabytes=megabytes - sum(candidate.megabytes for candidate in taken),
        )
        for taken in (ordered[:count] for count in range(len(ordered) + 1))
    )


def last_good(count: int, good: Callable[[int], bool]) -> int:
    """The last index up to ``count - 1`` that is good, by bisection; 0 is taken as good.

    Where goodness comes and goes, it is an index that is good with a next one that is not.

    >>> last_good(50, lambda index: index <= 37)
    37
    """
    low, high = 0, count - 1
    if high <= 0 or good(high):
        return max(high, 0)
    while high - low > 1:
        middle = (low + high) // 2
        if good(middle):
            low = middle
        else:
            high = middle
    return low


def first_within(
    points: Sequence[Point], milliseconds: float | None, megabytes: float | None
) -> int | None:
    """The most accurate point that is as fast and as small as asked for; None if none is."""
    for index, point in enumerate(points):
        fast = milliseconds is None or point.milliseconds <= milliseconds
        small = megabytes is None or point.megabytes <= megabytes
        if fast and small:
            return index
    return None

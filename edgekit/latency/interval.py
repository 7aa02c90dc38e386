"""Interval: what the median, or another quantile, of values measured one by one may be.

The values of a quiet machine are independent; those of a busy one come in bursts, and a burst of
twenty slow calls says little more than one. What a quantile's interval depends on is how many
values lie above it and how many below: for n values its ends lie z sqrt(f q (1 - q) n) ranks off
the middle, where f is 1 for independent values, and else 1 + 2 (r1 + r2 + ...), by how being
above correlates with being above 1, 2, ... values later. So f comes from the series itself, and a
run in bursts gets the wide interval that it deserves.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

#: Standard deviations of a normal distribution that hold 95% of it.
_Z = 1.96


def median_interval(values: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """The least, middle and largest value that the median may be, at 95%.

    Args:
        values: in the order in which they were measured. Of fewer than six, the ends are the
            least and the largest, which hold the median less often (``confidence``).

    >>> median_interval(np.array([3.0, 1.0, 2.0]))
    (1.0, 2.0, 3.0)
    >>> median_interval(np.array([8, 0, 9, 2, 11, 4, 13, 1, 12, 3, 10, 5, 14, 6, 7.0]))
    (3.0, 7.0, 11.0)
    """
    return quantile_interval(values, 0.5)


def quantile_interval(values: np.ndarray[Any, Any], share: float) -> tuple[float, float, float]:
    """As ``median_interval``, of the value that ``share`` of all lie below."""
    ordered = np.sort(values)
    count = len(ordered)
    middle = float(np.quantile(ordered, share))
    off = _off(count, share, dependence(values > middle))
    low = max(0, math.floor(share * count - off))
    high = min(count - 1, math.ceil(share * count + off) - 1)
    return float(ordered[low]), middle, float(ordered[high])


def confidence(count: int) -> float:
    """How often the median's interval holds it, of so many independent values.

    >>> round(confidence(3), 2), round(confidence(6), 3)
    (0.75, 0.969)
    """
    skipped = max(0, math.floor(count / 2 - _off(count, 0.5, 1.0)))
    beyond = sum(math.comb(count, k) for k in range(skipped + 1))
    return 1 - 2 * beyond / float(2**count)


def dependence(above: np.ndarray[Any, Any]) -> float:
    """How many values of the series say as much as one independent value: f, at least 1.

    The sum of autocorrelations ends by Geyer's rule (initial positive sequence, 1992), as far
    lags hold noise alone.

    Args:
        above: whether each value lies above the quantile, in the order of measuring.

    >>> dependence(np.tile([True, False], 20)), dependence(np.repeat([True, False] * 2, 10)) > 5
    (1.0, True)
    """
    signs = above - above.mean()
    power = float(signs @ signs)
    if not power:
        return 1.0
    count, factor = len(signs), -1.0
    for lag in range(0, count - 1, 2):
        pair = sum(float(signs[k:] @ signs[: count - k]) / power for k in (lag, lag + 1))
        if pair <= 0:
            break
        factor += 2 * pair
    return float(max(factor, 1.0))


def _off(count: int, share: float, factor: float) -> float:
    """Ranks from the quantile to either end of its interval."""
    return _Z * math.sqrt(factor * share * (1 - share) * count) + 0.5

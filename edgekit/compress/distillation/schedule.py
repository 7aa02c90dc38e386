"""Schedule: which samples a step sees and at what rate, from its number alone.

Nothing is drawn on the way, so a run that goes on at a step goes on as if it had not stopped.
"""

from __future__ import annotations

import math

import numpy as np

#: The share of all steps in which the rate rises.
WARM_UP = 0.05


def samples_of(step: int, batch_size: int, count: int, seed: int) -> list[int]:
    """Indices of a step's samples: all samples in a random order, then in another, and so on."""
    first, last = step * batch_size, (step + 1) * batch_size
    chosen: list[int] = []
    for epoch in range(first // count, (last - 1) // count + 1):
        order = np.random.default_rng([seed, epoch]).permutation(count)
        start = max(first - epoch * count, 0)
        chosen += order[start : last - epoch * count].tolist()
    return chosen


def factor(step: int, steps: int) -> float:
    """What the rate is multiplied by: a linear rise, then half a cosine down to nothing."""
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

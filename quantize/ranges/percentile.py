"""percentile: the magnitude that a share of all values does not exceed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgekit.quantize.observe import Statistics


@dataclass(frozen=True)
class Range:
    """The least peak with P(|x| <= peak) >= percent / 100.

    Attributes:
        percent: of the values that are not clipped.
    """

    percent: float = 99.99

    def peak(self, seen: Statistics, qmax: int) -> float:
        """The magnitude that the largest level stands for, to a bin's width."""
        share = np.cumsum(seen.counts) / max(seen.counts.sum(), 1)
        last = int(np.searchsorted(share, self.percent / 100))
        return min((last + 1) * seen.limit / len(seen.counts), seen.peak)

"""average: a moving average of each batch's largest magnitude; one odd batch moves it little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.quantize.observe import Statistics


@dataclass(frozen=True)
class Range:
    """peak_t = peak_(t-1) + 0.1 (max |x_t| - peak_(t-1))."""

    def peak(self, seen: Statistics, qmax: int) -> float:
        """The magnitude that the largest level stands for."""
        return seen.average_peak

"""minmax: the largest magnitude. Nothing is clipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.quantize.observe import Statistics


@dataclass(frozen=True)
class Range:
    """peak = max |x|."""

    def peak(self, seen: Statistics, qmax: int) -> float:
        """The magnitude that the largest level stands for."""
        return seen.peak

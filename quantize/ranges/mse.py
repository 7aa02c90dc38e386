"""mse: the range whose quantization leaves the least mean squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgekit.quantize.observe import Statistics


@dataclass(frozen=True)
class Range:
    """argmin over p of sum_i n_i (q_p(x_i) - x_i)^2, with x_i the middle of bin i.

    q_p(x) = s clamp(round(x / s), qmax), s = p / qmax.

    Attributes:
        candidates: ranges tried, evenly from ``least`` of the largest magnitude to all of it.
        least: the smallest share tried.
    """

    candidates: int = 100
    least: float = 0.1

    def peak(self, seen: Statistics, qmax: int) -> float:
        """The magnitude that the largest level stands for."""
        filled = np.flatnonzero(seen.counts)
        counts, values = seen.counts[filled], seen.centres[filled]
        peaks = seen.peak * np.linspace(self.least, 1, self.candidates)
        steps = (peaks / qmax)[:, None]
        if not counts.size:
            return seen.peak
        errors = np.minimum(np.round(values / steps), qmax) * steps - values
        return float(peaks[np.argmin(errors**2 @ counts)])

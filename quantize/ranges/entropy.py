"""entropy: the range that loses the least information (Kullback-Leibler divergence).

S. Migacz, "8-bit inference with TensorRT", GTC 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgekit.quantize.observe import Array, Statistics


@dataclass(frozen=True)
class Range:
    """argmin over p of KL(P_p || Q_p).

    P_p is the histogram up to p, with all that lies beyond added to its last bin; Q_p is the
    part up to p after merging into the dtype's levels and spreading each over the bins that
    were filled.

    Attributes:
        stride: bins between two ranges that are tried.
    """

    stride: int = 16

    def peak(self, seen: Statistics, qmax: int) -> float:
        """The magnitude that the largest level stands for, to ``stride`` bins."""
        levels = qmax + 1
        # The zeros of a ReLU are exact at any scale: they must not decide it.
        counts = seen.counts.copy()
        counts[0] = counts[1] if len(counts) > 1 else 0
        last = int(np.flatnonzero(seen.counts).max(initial=0)) + 1
        ends = [*range(levels, last, self.stride), last]
        losses = [_divergence(counts, end, levels) for end in ends]
        end = ends[int(np.argmin(losses))]
        return float(min(end * seen.limit / len(counts), seen.peak))


def _divergence(counts: Array, end: int, levels: int) -> float:
    kept = counts[:end]
    p = kept.copy()
    p[-1] += counts[end:].sum()
    which = np.arange(end) * levels // end
    merged = np.bincount(which, kept, levels)
    filled = np.bincount(which, kept > 0, levels)
    q = np.where(kept > 0, (merged / np.maximum(filled, 1))[which], 0)
    if not q.sum() or not p.sum():
        return float(np.inf)
    p, q = p / p.sum(), q / q.sum()
    here = p > 0
    # A bin that q leaves empty costs as if it held one sample in ten million.
    return float((p[here] * np.log(p[here] / np.maximum(q[here], 1e-7))).sum())

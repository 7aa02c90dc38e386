"""Confidence: how far a share measured on some samples may be from the truth.

Two closed forms that stay honest where nothing, or everything, was a hit:

- Wilson's score interval for one share: E. B. Wilson, "Probable Inference, the Law of
  Succession, and Statistical Inference", 1927.
- Bonett and Price's interval for the difference of two shares of the same samples: "Adjusted
  Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired Data", 2012.
  Samples on which both agree tell nothing of the difference, so it is far narrower than what
  two separate intervals suggest.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

METHOD = "95%: Wilson for a share, Bonett-Price for a difference on the same samples"
#: The normal distribution's quantile for 95%, two-sided.
Z = 1.959964


def share(hits: np.ndarray[Any, Any]) -> tuple[float, float]:
    """The 95% interval of a share, within 0 and 1, from whether each sample is a hit.

    >>> import numpy as np
    >>> [round(end, 3) for end in share(np.array([True] * 9 + [False]))]
    [0.596, 0.982]
    """
    n, p = len(hits), float(hits.mean())
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def difference(hits: np.ndarray[Any, Any], base: np.ndarray[Any, Any]) -> tuple[float, float]:
    """The 95% interval of ``hits``' share less ``base``'s; both are of the same samples.

    >>> import numpy as np
    >>> same = np.array([True] * 98)
    >>> [round(end, 3) for end in difference(same, same)]
    [-0.028, 0.028]
    """
    n = len(hits) + 2
    gained = (int((hits & ~base).sum()) + 1) / n
    lost = (int((base & ~hits).sum()) + 1) / n
    middle, half = gained - lost, Z * sqrt((gained + lost - (gained - lost) ** 2) / n)
    return max(-1.0, middle - half), min(1.0, middle + half)

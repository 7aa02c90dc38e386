"""top5: the share of samples whose class is among the five highest scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.metrics.classes import within

if TYPE_CHECKING:
    import numpy as np

    from edgekit.targets.runtimes import Arrays

NEEDS = {"labels", "classes"}
UNIT = "%"


def hits(
    outputs: Arrays, labels: np.ndarray[Any, Any] | None, expected: Arrays | None
) -> np.ndarray[Any, Any]:
    """Whether each sample's class is among the five highest scores of the first output.

    Raises:
        EdgekitError: the outputs are no class scores, or the labels do not fit.
    """
    return within(outputs, labels, 5)


def score(outputs: Arrays, labels: np.ndarray[Any, Any] | None, expected: Arrays | None) -> float:
    """The share of hits, from 0 to 1."""
    return float(hits(outputs, labels, expected).mean())

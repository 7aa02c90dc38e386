"""agreement: the share of samples to which the source gives the same class; needs no labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.metrics.classes import class_scores, within

if TYPE_CHECKING:
    import numpy as np

    from edgekit.targets.runtimes import Arrays

NEEDS = {"expected", "classes"}
UNIT = "%"


def hits(
    outputs: Arrays, labels: np.ndarray[Any, Any] | None, expected: Arrays
) -> np.ndarray[Any, Any]:
    """Whether the highest score of each sample's first output is where the source's is.

    Raises:
        EdgekitError: the outputs are no class scores.
    """
    return within(outputs, class_scores(expected).argmax(1), 1)


def score(outputs: Arrays, labels: np.ndarray[Any, Any] | None, expected: Arrays) -> float:
    """The share of hits, from 0 to 1."""
    return float(hits(outputs, labels, expected).mean())

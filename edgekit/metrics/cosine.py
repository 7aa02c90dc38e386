"""cosine: of the outputs and the source's, each as one vector; of the worst output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from edgekit.targets.runtimes import Arrays

NEEDS = {"expected"}
UNIT = ""


def score(outputs: Arrays, labels: np.ndarray[Any, Any] | None, expected: Arrays) -> float:
    """The cosine, from -1 to 1: the same number as a bundle's drift."""
    from edgekit.drift import cosine

    return min(cosine(expected[name], value) for name, value in outputs.items())

"""average_precision: its mean over classes (mAP), each class against the rest.

For one class, samples are sorted by its score; average precision is the area under the curve of
precision over recall, the sum of (R_n - R_(n-1)) P_n over the distinct scores. Scores are taken as
the model gives them. A class without any sample of its own is left out of the mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.metrics.classes import checked, class_scores

if TYPE_CHECKING:
    import numpy as np

    from edgekit.targets.runtimes import Arrays

    Array = np.ndarray[Any, Any]

NEEDS = {"labels", "classes"}
UNIT = "%"


def score(outputs: Arrays, labels: Array | None, expected: Arrays | None) -> float:
    """The mean over classes, from 0 to 1.

    Args:
        outputs: of which the first is (samples, classes).
        labels: one class a sample, or (samples, classes) of 0 and 1 for several a sample.
        expected: not used.

    Raises:
        EdgekitError: the outputs are no class scores, or the labels do not fit.
    """
    import numpy as np

    scores = class_scores(outputs)
    positive = _targets(labels, scores)
    # What is not a number ranks last: it is nobody's class.
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    present = np.flatnonzero(positive.any(0))
    return float(np.mean([_area(ranked[:, c], positive[:, c]) for c in present]))


def _targets(labels: Array | None, scores: Array) -> Array:
    """(samples, classes), true where the sample is of the class."""
    import numpy as np

    if labels is None or labels.ndim != 2:
        one_hot: Array = checked(labels, scores)[:, None] == np.arange(scores.shape[1])
        return one_hot
    if labels.shape != scores.shape or not np.isin(labels, (0, 1)).all() or not labels.any():
        raise EdgekitError(
            "The labels do not say which classes each sample is of.",
            f"They are {labels.dtype} {labels.shape}; the scores are {scores.shape}.",
            "Give 0 or 1 for each sample and class, with at least one 1.",
        )
    found: Array = labels.astype(bool)
    return found


def _area(scores: Array, positive: Array) -> float:
    """Average precision of one class."""
    import numpy as np

    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(positive[order])
    # Samples of equal score are taken together.
    ends = np.append(np.flatnonzero(scores[order][1:] != scores[order][:-1]), len(order) - 1)
    gained = np.diff(found[ends], prepend=0)
    return float((gained * found[ends] / (ends + 1)).sum() / found[-1])

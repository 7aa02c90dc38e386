"""Class scores and the labels that they are judged by: what several metrics share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    import numpy as np

    from edgekit.targets.runtimes import Arrays

    Array = np.ndarray[Any, Any]


def scores_of(outputs: Arrays) -> Array | None:
    """The first output, if it is of the form (samples, classes), else None."""
    first = next(iter(outputs.values()))
    return first if first.ndim == 2 and first.shape[1] > 1 else None


def class_scores(outputs: Arrays) -> Array:
    """The first output, which must be (samples, classes).

    Raises:
        EdgekitError: it has another form.
    """
    scores = scores_of(outputs)
    if scores is None:
        name, first = next(iter(outputs.items()))
        raise EdgekitError(
            "The model gives no class scores.",
            f"Its first output, {name}, is {first.shape}; scores are (samples, classes).",
            "Use --metric cosine, or a metric of your own.",
        )
    return scores


def given(labels: Array | None) -> Array:
    """The labels.

    Raises:
        EdgekitError: there are none.
    """
    if labels is None:
        raise EdgekitError(
            "There are no labels to judge by.",
            "",
            "Put the images in one folder a class, add an array `labels` to the .npz, or pass "
            "--labels FILE.npy.",
        )
    return labels


def check_range(labels: Array, classes: int) -> None:
    """Raise unless all labels are from 0 to below ``classes``."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise EdgekitError(
            "The labels are not classes of this model.",
            f"They go from {low} to {high}; the model scores {classes} classes, "
            f"0 to {classes - 1}.",
            "Name the class folders by the model's class numbers, correct the labels, or use "
            "--metric cosine, which needs none.",
        )


def checked(labels: Array | None, scores: Array) -> Array:
    """The labels, if they are one class a sample and within the scores' classes.

    Raises:
        EdgekitError: there are none, or they are of another form, number or range.
    """
    labels = given(labels)
    if labels.shape != scores.shape[:1] or labels.dtype.kind not in "iu":
        raise EdgekitError(
            "The labels are not one class a sample.",
            f"They are {labels.dtype} {labels.shape}; there are {len(scores)} samples.",
            "Give integers, one a sample.",
        )
    check_range(labels, scores.shape[1])
    return labels


def within(outputs: Arrays, labels: Array | None, k: int) -> Array:
    """Whether each sample's class is among its ``k`` highest scores.

    Of equal scores the lower class comes first. A sample with a NaN score never passes.

    Raises:
        EdgekitError: the outputs are no class scores, or the labels do not fit.
    """
    import numpy as np

    scores = class_scores(outputs)
    classes = checked(labels, scores)[:, None]
    own = np.take_along_axis(scores, classes, 1)
    earlier = np.arange(scores.shape[1]) < classes
    better = ((scores > own) | ((scores == own) & earlier)).sum(1)
    found: Array = (better < k) & ~np.isnan(scores).any(1)
    return found

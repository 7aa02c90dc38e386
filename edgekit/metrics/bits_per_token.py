"""bits_per_token: the mean of log2 p(the token that comes), so minus the bits that it costs.

Higher is better, as for all metrics: -1.8 is 1.8 bits a token (of a character model, a character).
The labels are the tokens that come, one row a sample: ``--labels FILE.npy``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.metrics.classes import check_range, given

if TYPE_CHECKING:
    import numpy as np

    from edgekit.targets.runtimes import Arrays

    Array = np.ndarray[Any, Any]

NEEDS = {"labels"}
UNIT = ""


def score(outputs: Arrays, labels: Array | None, expected: Arrays | None) -> float:
    """The mean over all samples and positions.

    Args:
        outputs: of which the first holds the logits, (samples, ..., vocabulary).
        labels: the token that follows at each place, (samples, ...).
        expected: not used.

    Raises:
        EdgekitError: the labels are not a token for each row of logits.
    """
    import numpy as np

    logits, tokens = next(iter(outputs.values())), given(labels)
    if tokens.shape != logits.shape[:-1] or tokens.dtype.kind not in "iu":
        raise EdgekitError(
            "The labels are not the tokens that follow.",
            f"They are {tokens.dtype} {tokens.shape}; the first output, read as (samples, ..., "
            f"vocabulary), is {logits.shape}.",
            "Pass --labels FILE.npy with an integer for each sample and position.",
        )
    check_range(tokens, logits.shape[-1])
    # A sample at a time: in float64, all of them may not fit.
    bits = [_log2_probability(row, own).mean() for row, own in zip(logits, tokens, strict=True)]
    return float(np.mean(bits))


def _log2_probability(logits: Array, tokens: Array) -> Array:
    """Of each token (...); logits (..., vocabulary)."""
    import numpy as np

    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    own = np.take_along_axis(shifted, tokens[..., None], -1)[..., 0]
    found: Array = (own - np.log(np.exp(shifted).sum(-1))) / np.log(2)
    return found

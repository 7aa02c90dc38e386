"""Metrics: how good outputs are, as one number; one file each.

Each has these names:

- ``NEEDS``: what it cannot do without: ``"labels"``, ``"expected"`` (it is then by itself a
  comparison with the source), ``"classes"`` (the first output is (samples, classes)).
- ``UNIT``: ``"%"`` for a share (a number from 0 to 1), else ``""``.
- ``score(outputs, labels, expected) -> float``; higher is better. ``outputs`` are what is judged
  and ``expected`` the source's outputs (or None): read-only arrays by name, batch first.
  ``labels`` (or None) are one class a sample, or what ``--labels`` gave.
- ``hits(outputs, labels, expected)``, where the score is the share of samples that pass: whether
  each does. With it, the score has a confidence interval.

A metric of your own is any function with ``score``'s three parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.find import find

if TYPE_CHECKING:
    import numpy as np

    from edgekit.targets.runtimes import Arrays

    Array = np.ndarray[Any, Any]
    Function = Callable[[Arrays, Array | None, Arrays | None], Any]


@dataclass(frozen=True)
class Metric:
    """A metric that can be called.

    Attributes:
        name: as the user wrote it.
        function: ``score`` of a file of this room, or the user's own function.
        hits: gives whether each sample passes, or None where the score is no share of samples.
        needs: of ``labels``, ``expected`` and ``classes``.
        unit: ``%`` or nothing.
    """

    name: str
    function: Function
    hits: Function | None = None
    needs: Collection[str] = ()
    unit: str = ""

    @property
    def compares(self) -> bool:
        """Whether a score is by itself a comparison with the source."""
        return "expected" in self.needs

    def require(self, outputs: Arrays, labels: Array | None, source: bool) -> None:
        """Raise where it cannot judge such outputs: told by the first of them.

        Args:
            outputs: of a few samples.
            labels: of all samples, or None.
            source: whether the source's outputs can be had.

        Raises:
            EdgekitError: what it needs is not there, or does not fit.
        """
        from edgekit.metrics import classes

        if self.compares and not source:
            raise EdgekitError(
                f"The metric {self.name} compares with the source, which is not here.",
                "",
                "Pass --model MODEL, or choose a metric that needs labels only.",
            )
        found = classes.given(labels) if "labels" in self.needs else None
        if "classes" in self.needs:
            scores = classes.class_scores(outputs)
            if found is not None and found.ndim == 1:
                classes.check_range(found, scores.shape[1])

    def score(self, outputs: Arrays, labels: Array | None, expected: Arrays | None) -> float:
        """The number for these outputs.

        Raises:
            EdgekitError: labels are missing or do not fit, or the user's code raised or gave
                something else than a finite number.
        """
        from edgekit.families import probe

        try:
            value = self.function(outputs, labels, expected)
        except EdgekitError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{name} {value.shape}" for name, value in outputs.items())
            raise probe.failed(
                f"The metric {self.name} failed.",
                error,
                f"It is called with (outputs, labels, expected); the outputs are {shapes}.",
            ) from error
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            kind = type(value).__name__
            raise EdgekitError(
                f"The metric {self.name} gave a {kind}.", "", "Return one number."
            ) from error
        if not math.isfinite(number):
            raise EdgekitError(f"The metric {self.name} gave {number}.", "", "Return a number.")
        return number


def load(metric: str | Function) -> Metric:
    """The metric of that name, or the user's own.

    Args:
        metric: a name in this room, ``package.module:function``, ``file.py:function``, or a
            function.

    Raises:
        EdgekitError: there is none, or the user's code cannot be imported.
    """
    if not isinstance(metric, str):
        return Metric(getattr(metric, "__name__", repr(metric)), metric)
    if ":" in metric:
        from edgekit.families.factory import find_code

        return Metric(metric, find_code(metric, "a function of (outputs, labels, expected)"))
    module = find("metrics", metric)
    return Metric(metric, module.score, getattr(module, "hits", None), module.NEEDS, module.UNIT)

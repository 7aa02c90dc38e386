"""Scores: what an evaluation found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.evaluation import confidence

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Score:
    """What one metric says of one row.

    Attributes:
        value: the metric's number; a share is from 0 to 1.
        unit: ``%`` for a share, else nothing.
        interval: its 95% interval, where it is a share of samples.
        difference: from the source, in points (hundredths); None where there is no source, and
            for metrics that are by themselves a comparison with it.
        difference_interval: its 95% interval, in points.
    """

    value: float
    unit: str
    interval: tuple[float, float] | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None

    @property
    def noise(self) -> bool:
        """Whether there is a difference that the samples are too few to tell from none."""
        if self.difference_interval is None or self.difference == 0:
            return False
        low, high = self.difference_interval
        return low <= 0 <= high


@dataclass(frozen=True)
class Row:
    """One thing that was evaluated.

    Attributes:
        artifact: ``source``, or the artifact's path in its bundle.
        status: ``evaluated``, ``not run: ...`` or ``failed: ...``.
        scores: by metric; empty where it was not evaluated.
    """

    artifact: str
    runtime: str
    status: str
    scores: Mapping[str, Score]

    @property
    def failed(self) -> bool:
        """Whether it could not do what it should be able to do here."""
        return self.status.startswith("failed")


@dataclass(frozen=True)
class Report:
    """What an evaluation found; ``dataclasses.asdict`` gives its JSON.

    Attributes:
        data: where the samples come from.
        samples: how many each row was judged on.
        intervals: what the intervals are.
        notes: what a reader must know.
    """

    subject: str
    data: str
    samples: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    environment: Mapping[str, Any]
    intervals: str = confidence.METHOD
    schema_version: int = SCHEMA_VERSION

    def worse(self, points: float) -> list[str]:
        """The artifacts that are more than ``points`` below the source, each in a few words.

        Raises:
            EdgekitError: no artifact was compared with the source.
        """
        compared = [
            (row.artifact, name, score.difference)
            for row in self.rows
            for name, score in row.scores.items()
            if score.difference is not None
        ]
        if not compared:
            raise EdgekitError(
                f"No accuracy drop could be judged on {self.data}.",
                "It takes the source, an artifact that runs here, and a metric beside those that "
                "compare with the source: "
                + "; ".join(f"{r.artifact} {r.status}" for r in self.rows),
                "Give data with labels (or --labels), and --model where the source is not found.",
            )
        return [
            f"{artifact}: {name} is {-difference:.2f} points below the source"
            for artifact, name, difference in compared
            if difference < -points - 1e-9
        ]

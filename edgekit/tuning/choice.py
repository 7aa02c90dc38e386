"""Choice: what a search for mixed precision is asked, tries and finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.latency import Ratio
from edgekit.plot import Dot, curve

if TYPE_CHECKING:
    from edgekit.quantize.search import Point
    from edgekit.tuning.costs import Costs
    from edgekit.tuning.quantizing import Analysis

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Goal:
    """What to reach: one floor under accuracy, and perhaps a target for speed or size.

    Attributes:
        accuracy_drop: points of top-1 that may be lost; needs labels.
        max_drift: relative error of the outputs that is allowed.
        latency_ms: of a call; the most accurate choice that is as fast is taken.
        size_mb: of the artifact; the most accurate choice that is as small is taken.
    """

    accuracy_drop: float | None = None
    max_drift: float | None = None
    latency_ms: float | None = None
    size_mb: float | None = None

    def __post_init__(self) -> None:
        if (self.accuracy_drop is None) == (self.max_drift is None):
            raise EdgekitError(
                "A search needs one floor under accuracy.",
                "",
                "Pass either --accuracy-drop POINTS or --max-drift SHARE.",
            )

    def met_by(self, trial: Trial) -> bool:
        """Whether a trial is accurate enough."""
        if self.accuracy_drop is not None:
            return trial.drop is not None and trial.drop <= self.accuracy_drop + 1e-9
        return self.max_drift is not None and trial.drift <= self.max_drift

    def exceeded(self, ratios: Sequence[Ratio], sizes: tuple[float, float] | None) -> str:
        """What was measured beyond the targets for speed and size, or ''."""
        over = []
        if self.latency_ms is not None and ratios:
            quickest = min(ratio.first_ms for ratio in ratios)
            over += [f"{quickest:.2f} ms"] if quickest > self.latency_ms else []
        if self.size_mb is not None and sizes is not None and sizes[1] > self.size_mb:
            over.append(f"{sizes[1]:.2f} MB")
        return " and ".join(over)

    def __str__(self) -> str:
        floor = f"a drift of at most {self.max_drift}"
        if self.accuracy_drop is not None:
            floor = f"at most {self.accuracy_drop:g} points of top-1 below the source"
        fast = "" if self.latency_ms is None else f", {self.latency_ms:g} ms a call"
        return floor + fast + ("" if self.size_mb is None else f", {self.size_mb:g} MB")


@dataclass(frozen=True)
class Trial:
    """A point of the front, run on the judging samples.

    Attributes:
        point: its place in the front.
        modules: how many are quantized.
        drift: relative error of the worst output.
        drop: points of top-1 lost; None without labels.
        interval: its 95% interval.
    """

    point: int
    modules: int
    drift: float
    drop: float | None
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        text = f"{self.modules} modules: drift {self.drift:.4f}"
        if self.drop is None or self.interval is None:
            return text
        low, high = self.interval
        return f"{text}, {self.drop:.2f} points lost [{low:.2f}, {high:.2f}]"


@dataclass(frozen=True)
class Found:
    """What a search found; ``asdict`` gives its JSON.

    Attributes:
        goal: in words.
        costs: how milliseconds were found, and what each module saves.
        front: the points, from all in float to all that gain quantized.
        trials: those that were run.
        chosen: the place of the chosen point; None where none was accurate enough.
        left: candidates that the chosen point leaves in float.
        final: the chosen point calibrated anew, as a build makes it.
        ratios: latency against float, by number of threads; empty where it cannot run here.
        sizes_mb: of the float and the chosen artifact; None where they were not made.
        verdict: what to do, in a sentence.
        recipe_precision: what ``recipe.yaml`` asks for.
    """

    model: str
    target: str
    precision: str
    float_dtype: str
    goal: str
    judged_on: str
    judged_samples: int
    source_top1: float | None
    analysis: Analysis
    costs: Costs
    front: tuple[Point, ...]
    trials: tuple[Trial, ...]
    chosen: int | None
    left: tuple[str, ...]
    final: Trial | None
    ratios: tuple[Ratio, ...]
    sizes_mb: tuple[float, float] | None
    verdict: str
    recipe_precision: str
    schema_version: int = SCHEMA_VERSION


def verdict(
    part: str, precision: str, whole: str, ratios: Sequence[Ratio], by_size: bool
) -> tuple[str, str]:
    """What to do with a choice that was timed against float, and the precision it comes to.

    Args:
        part: the choice in words.
        whole: the float type.
        by_size: whether size was asked for, so that a slower choice is still wanted.
    """
    told = " and ".join(f"{r.ratio:.2f}x of {whole}{r.on_threads}" for r in ratios)
    if min(ratio.ratio for ratio in ratios) < 1:
        slow = [r for r in ratios if r.ratio > 1]
        warning = f"; slower than {whole}{slow[0].on_threads}" if slow else ""
        return f"{part}: {told}{warning}.", precision
    slower = f"{precision} is slower than {whole} here: {told}"
    if by_size:
        return f"{part}: smaller, but {slower}.", precision
    return f"{slower}; keep {whole}.", whole


def picture(found: Found) -> str:
    """The front, with what was tried and what was chosen."""
    tried = {trial.point: trial for trial in found.trials}
    dots = [
        Dot(
            point.milliseconds,
            point.drift,
            marked=index == found.chosen,
            note="chosen" if index == found.chosen else "",
            tip=f"{len(point.modules)} modules, {point.milliseconds:.3g} ms, "
            f"drift {point.drift:.3g}" + (f"; tried: {tried[index]}" if index in tried else ""),
        )
        for index, point in enumerate(found.front)
    ]
    title = f"{found.model} on {found.target}: {found.precision} module by module"
    return curve(title, f"ms a call, {found.costs.source}", "predicted drift", dots)

"""Mixing precisions: which modules to quantize, so that the model stays accurate and gets fast."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import files
from edgekit.drift import compare
from edgekit.errors import CheckFailed, EdgekitError
from edgekit.evaluation import confidence
from edgekit.find import find
from edgekit.latency import Ratio, paired, thread_choices
from edgekit.metrics import top1
from edgekit.model import run_module
from edgekit.progress import say, stage, track
from edgekit.quantize.search import Candidate, Point, first_within, front, last_good
from edgekit.recipe import Recipe
from edgekit.targets import Target
from edgekit.tuning.choice import Found, Goal, Trial, picture, verdict
from edgekit.tuning.costs import BYTES, Costs, by_prediction, by_profile, by_share
from edgekit.tuning.quantizing import (
    RECIPE,
    Analysis,
    examine,
    only_target,
    quantized_recipe,
    runs_here,
    settings_of,
    write_recipe,
)
from edgekit.work import Work

if TYPE_CHECKING:
    from edgekit.model import Graph
    from edgekit.quantize.post_training import Quantized
    from edgekit.targets.runtimes import Arrays


def search(recipe: Recipe, goal: Goal, out: Path) -> Found:
    """Choose each module's precision by what was measured, and write a recipe that says so.

    Writes ``search.json``, ``pareto.svg`` and, if the goal is met, ``recipe.yaml`` into ``out``.

    Raises:
        EdgekitError: bad input.
        CheckFailed: no choice meets the goal; the message tells the best that was reached.
    """
    recipe = quantized_recipe(recipe)
    if not recipe.targets:
        recipe = recipe.model_copy(update={"targets": ("cpu",)})
    target = only_target(recipe)
    # A layer takes as long in a part as in the whole, and only a whole is profiled.
    whole = recipe.model_copy(update={"split_streams": False})
    with tempfile.TemporaryDirectory() as folder:
        found, failure, chosen = _Search(Work(whole), target, goal, Path(folder)).run()
    chosen = chosen.model_copy(update={"split_streams": recipe.split_streams})
    files.make_folder(out)
    files.write_text(out / "search.json", json.dumps(asdict(found), indent=1))
    files.write_text(out / "pareto.svg", picture(found))
    if failure is not None:
        raise failure
    write_recipe(chosen, out / RECIPE, f"Found by edgekit quantize: {found.verdict}")
    return found


class _Search:
    """One search: its steps, in order."""

    def __init__(self, work: Work, target: Target, goal: Goal, folder: Path) -> None:
        self.work, self.target, self.goal, self.folder = work, target, goal, folder
        self.recipe = work.recipe
        self.format = target.formats[-1]
        self.runtime = runs_here(target, self.format)
        self.trials: dict[int, Trial] = {}
        if goal.accuracy_drop is not None and work.top1(work.expected) is None:
            raise EdgekitError(
                f"No accuracy can be judged on {work.datasets[1].origin}.",
                "It has no labels that fit the model's first output.",
                "Give labelled --evaluation data, or a floor of --max-drift SHARE.",
            )

    def run(self) -> tuple[Found, CheckFailed | None, Recipe]:
        """Everything; a goal that is not met is returned beside what was found."""
        chosen = self._choose()
        final: Trial | None = None
        ratios: tuple[Ratio, ...] = ()
        sizes: tuple[float, float] | None = None
        if chosen:
            chosen, final, ratios, sizes = self._prove(chosen)
        failure = self._failure(chosen, ratios, sizes)
        modules = self.front[chosen or 0].modules
        left = tuple(c.module for c in self.candidates if c.module not in modules)
        told, precision = self._verdict(chosen, ratios)
        found = Found(
            model=self.recipe.model,
            target=self.target.name,
            precision=self.recipe.precision,
            float_dtype=self.target.float_dtype,
            goal=str(self.goal),
            judged_on=self.work.datasets[1].origin,
            judged_samples=len(self.work.datasets[1]),
            source_top1=self.work.top1(self.work.expected),
            analysis=self.analysis,
            costs=self.costs,
            front=self.front,
            trials=tuple(self.trials.values()),
            chosen=chosen,
            left=left,
            final=final,
            ratios=ratios,
            sizes_mb=sizes,
            verdict=failure.what if failure else told,
            recipe_precision=precision,
        )
        return found, failure, self._chosen_recipe(precision, left)

    @cached_property
    def quantized(self) -> Quantized:
        return self.work.quantize()

    @cached_property
    def analysis(self) -> Analysis:
        return examine(self.work, [self.target])

    @cached_property
    def costs(self) -> Costs:
        """What each module saves: measured here if this machine can, else predicted."""
        damages = self.analysis.damages
        if self.runtime is None:
            batch = len(next(iter(self.work.batches[0].values())))
            precision = self.recipe.precision
            return by_prediction(self.work.model, self.target, precision, damages, batch)
        whole, quantized = self._artifact(None, "float"), self._artifact(self.quantized, "all")
        settings = settings_of(self.work)
        with stage("Measuring where the time goes"):
            ratio = paired(quantized, whole, self.runtime, settings, 1)
            if self.runtime == "onnxruntime":
                return by_profile(whole, quantized, settings.inputs, damages, ratio)
        return by_share(damages, ratio)

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(d.module, d.drift, self.costs.saved[d.module], d.parameters * self._spared)
            for d in self.analysis.damages
        )

    @cached_property
    def _spared(self) -> float:
        """Megabytes that quantizing spares a weight, on average: measured if both are made."""
        if self.runtime is not None:
            whole, all_ = self._artifact(None, "float"), self._artifact(self.quantized, "all")
            weights = sum(damage.parameters for damage in self.analysis.damages)
            return (files.size(whole) - files.size(all_)) / 1e6 / weights
        weight = BYTES[self.recipe.scheme.weight] if self.recipe.scheme else 0.0
        return (BYTES[self.target.float_dtype] - weight) / 1e6

    @cached_property
    def front(self) -> tuple[Point, ...]:
        by_size = self.goal.size_mb is not None
        return front(self.candidates, self.costs.milliseconds, self._float_mb, by_size)

    @cached_property
    def _float_mb(self) -> float:
        if self.runtime is not None:
            return files.size(self._artifact(None, "float")) / 1e6
        numbers = sum(p.numel() for p in self.work.model.module.parameters())
        return numbers * BYTES[self.target.float_dtype] / 1e6

    def _choose(self) -> int | None:
        """The place of the point to take; None if none is accurate, fast and small enough."""
        goal, points = self.goal, self.front
        if goal.latency_ms is None and goal.size_mb is None:
            last = last_good(len(points), self._good)
            return last if last or len(points) == 1 else None
        index = first_within(points, goal.latency_ms, goal.size_mb)
        return index if index is not None and self._good(index) else None

    def _good(self, index: int) -> bool:
        return index == 0 or self.goal.met_by(self._trial(index))

    def _trial(self, index: int) -> Trial:
        """Run a point in PyTorch on all judging samples."""
        if index not in self.trials:
            table = self.quantized.table
            out = {name for name in table.sites if name.rpartition(".")[0] in self._left(index)}
            some = replace(self.quantized, table=table.without(out))
            outputs = self._run(self.work.lower(self.target, some))
            self.trials[index] = self._score(index, outputs)
            say(f"Tried {self.trials[index]}")
        return self.trials[index]

    def _left(self, index: int) -> set[str]:
        return {c.module for c in self.candidates} - set(self.front[index].modules)

    def _run(self, graph: Graph) -> list[Arrays]:
        module = graph.exported.module(check_guards=False)
        runs = track(self.work.batches, "Running a choice of precisions")
        return [run_module(module, graph.complete(batch), graph.outputs) for batch in runs]

    def _score(self, index: int, outputs: list[Arrays]) -> Trial:
        work, modules = self.work, len(self.front[index].modules)
        drift = compare(work.expected, outputs).relative
        labels = work.datasets[1].labels
        if labels is None or work.top1(outputs) is None:
            return Trial(index, modules, drift, None, None)
        before, after = (_hits(calls, labels) for calls in (work.expected, outputs))
        low, high = confidence.difference(before, after)
        drop = 100 * float(before.mean() - after.mean())
        return Trial(index, modules, drift, drop, (100 * low, 100 * high))

    def _prove(
        self, index: int
    ) -> tuple[int | None, Trial | None, tuple[Ratio, ...], tuple[float, float] | None]:
        """Calibrate the choice anew, as a build does, and judge and measure what is then made.

        Where it turns out less accurate than when it was tried, more careful choices follow;
        where it turns out slower or larger than predicted, quicker or smaller ones.
        """
        limited = self.goal.latency_ms is not None or self.goal.size_mb is not None
        step = max(1, len(self.front) // 20) * (1 if limited else -1)
        while 0 < index < len(self.front):
            final, path = self._made(index)
            accurate = self.goal.met_by(final)
            ratios, sizes = self._measured(path) if path and accurate else ((), None)
            over = self.goal.exceeded(ratios, sizes)
            if accurate and (not over or index + step >= len(self.front)):
                return index, final, ratios, sizes
            if limited and not accurate:
                break
            say(f"Built, {final}{over and f', {over}'}: trying another.")
            index += step
        return None, None, (), None

    def _made(self, index: int) -> tuple[Trial, Path | None]:
        """A choice as a build makes it; in PyTorch alone where nothing here runs the artifact."""
        work = copy.copy(self.work)
        work.recipe = self._chosen_recipe(self.recipe.precision, tuple(self._left(index)))
        made = work.quantize()
        if self.runtime is None:
            return self._score(index, self._run(work.lower(self.target, made))), None
        path = self._artifact(made, f"choice{index}")
        return self._score(index, work.run(path, self.runtime)), path

    def _measured(self, path: Path) -> tuple[tuple[Ratio, ...], tuple[float, float]]:
        whole = self._artifact(None, "float")
        settings = settings_of(self.work)
        with stage(f"Comparing with {self.target.float_dtype}"):
            ratios = tuple(
                paired(path, whole, str(self.runtime), settings, threads)
                for threads in thread_choices(str(self.runtime))
            )
        return ratios, (files.size(whole) / 1e6, files.size(path) / 1e6)

    def _artifact(self, quantized: Quantized | None, name: str) -> Path:
        """The artifact of a choice, made once a name."""
        folder = self.folder / name
        path: Path = folder / find("converters", self.format).NAME
        if not path.exists():
            files.make_folder(folder)
            self.work.artifact(self.target, self.format, folder, quantized)
        return path

    def _failure(
        self,
        chosen: int | None,
        ratios: tuple[Ratio, ...],
        sizes: tuple[float, float] | None,
    ) -> CheckFailed | None:
        """Why the goal is not met, or None."""
        goal = self.goal
        if chosen is None:
            return CheckFailed(
                f"No choice of {self.recipe.precision} modules reaches {goal}.",
                self._best(),
                "Allow more, or try --effort best.",
            )
        over = goal.exceeded(ratios, sizes)
        if not over:
            return None
        return CheckFailed(
            f"No choice reaches {goal}.", f"The nearest takes {over}.", "Allow more."
        )

    def _best(self) -> str:
        """The best that was reached, in words."""
        fastest = min(self.front, key=lambda point: point.milliseconds)
        ends = f"The fastest point is predicted to take {fastest.milliseconds:.3g} ms"
        ends += f", the smallest {min(p.megabytes for p in self.front):.3g} MB."
        if not self.trials:
            return ends
        by_drift = self.goal.accuracy_drop is None
        best = min(self.trials.values(), key=lambda t: (0 if by_drift else t.drop or 0, t.drift))
        return f"The most accurate that was tried is {best}. {ends}"

    def _verdict(self, chosen: int | None, ratios: Sequence[Ratio]) -> tuple[str, str]:
        """What to do, in a sentence, and the precision that it comes to."""
        precision, whole = self.recipe.precision, self.target.float_dtype
        if not chosen:
            gains = len(self.front) > 1
            why = "it meets the goal" if gains else f"no module gains by {precision} here"
            return f"Keep {whole}: {why}.", whole
        part = f"{len(self.front[chosen].modules)} of {len(self.candidates)} modules in {precision}"
        if not ratios:
            return f"{part}; its latency is {self.costs.source}, and not measured here.", precision
        return verdict(part, precision, whole, ratios, self.goal.size_mb is not None)

    def _chosen_recipe(self, precision: str, left: tuple[str, ...]) -> Recipe:
        """The recipe with the choice in it; in float it has no word on quantization."""
        if precision == self.recipe.precision:
            exclude = (*self.recipe.exclude, *sorted(left))
            return self.recipe.model_copy(update={"exclude": exclude})
        update: dict[str, Any] = {"precision": precision, "exclude": (), "scales": None}
        return self.recipe.model_copy(update=update)


def _hits(calls: list[Arrays], labels: Sequence[int]) -> np.ndarray[Any, Any]:
    joined = {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}
    count = len(next(iter(joined.values())))
    return top1.hits(joined, np.array(labels[:count]), None)

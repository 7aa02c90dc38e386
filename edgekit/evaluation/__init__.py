"""Evaluate: the source and every artifact, judged on the same samples by the same metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.data import Dataset, open_data
from edgekit.errors import CheckFailed, EdgekitError
from edgekit.evaluation import confidence
from edgekit.evaluation.scores import Report, Row, Score
from edgekit.evaluation.subject import Candidate, Subject, open_subject
from edgekit.metrics import load as load_metric
from edgekit.model import Model, run_module
from edgekit.progress import track
from edgekit.whole import opened

if TYPE_CHECKING:
    import numpy as np

    from edgekit.metrics import Function, Metric
    from edgekit.recipe import Recipe
    from edgekit.targets.runtimes import Arrays

    Array = np.ndarray[Any, Any]
    Infer = Callable[[Arrays], Arrays]

#: Samples in one call of what takes any number.
BATCH = 32


def evaluate(
    subject: str | Path | Recipe,
    data: str | Path | Mapping[str, Any] | Iterable[Any],
    metrics: Sequence[str | Function] = (),
    source: Recipe | None = None,
    samples: int | None = None,
    seed: int = 0,
    batch: int | None = None,
    labels: Path | Array | None = None,
) -> Report:
    """Run the source and every artifact over the same samples, and score their outputs.

    Args:
        subject: a bundle, an artifact, the name of a model, or a recipe that makes one.
        data: as for ``edgekit.data.open_data``; read once for each thing that is run.
        metrics: names in ``edgekit.metrics``, ``package.module:function``, ``file.py:function``
            or functions. By default ``top1`` and ``top5`` where there are labels and class
            scores, and ``cosine`` where there is a source and an artifact.
        source: the recipe of a bundle's or artifact's source; a bundle knows its own.
        samples: take so many at random; None takes all.
        seed: of that choice.
        batch: samples a call, for the source and for artifacts that take any number.
        labels: one row a sample, in place of the data's own; an array or an ``.npy`` file.

    Raises:
        EdgekitError: bad input, or there is nothing to judge by.
    """
    from edgekit.machine import environment

    chosen = [load_metric(metric) for metric in metrics]
    judged = open_subject(subject, source, data)
    dataset, targets = _samples(judged, data, labels, samples, seed)
    run = _Evaluation(judged, dataset, targets, chosen, batch)
    rows = (run.source(), *(run.candidate(each) for each in judged.candidates))
    return Report(
        subject=judged.name,
        data=dataset.origin,
        samples=len(dataset),
        rows=rows,
        notes=judged.notes,
        environment=environment(),
    )


class _Evaluation:
    """One run of ``evaluate``: what is the same for all its rows."""

    def __init__(
        self,
        subject: Subject,
        dataset: Dataset,
        labels: Array | None,
        asked: list[Metric],
        batch: int | None,
    ) -> None:
        self._subject, self._dataset, self._labels = subject, dataset, labels
        self._asked, self._batch = asked, batch
        self._metrics: list[Metric] = []  # chosen when the first outputs are there
        self._expected: Arrays | None = None

    def source(self) -> Row:
        """The source's row, which all others are compared with."""
        model = self._subject.model
        if model is None:
            return Row("source", "torch", f"not run: {self._subject.missing}", {})
        size = self._batch or self._subject.batch or BATCH
        self._expected = self._outputs(model.source, lambda call: _call(model, call), size)
        return self._row("source", "torch", self._expected)

    def candidate(self, candidate: Candidate) -> Row:
        """An artifact's row; where it fails, the row says so and the others go on."""
        name, runtime = candidate.name, candidate.runtime
        if candidate.absent:
            return Row(name, runtime, f"not run: {candidate.absent}", {})
        try:
            outputs = self._run(candidate)
        except CheckFailed as error:
            return Row(name, runtime, f"failed: {error.what} {error.why}".strip(), {})
        return self._row(name, runtime, outputs)

    def _run(self, candidate: Candidate) -> Arrays:
        """An artifact's outputs.

        Raises:
            CheckFailed: it cannot be loaded or run, or gives other outputs than the source.
        """
        try:
            session = opened(candidate.runtime, candidate.path)
        except EdgekitError as error:
            raise CheckFailed(error.what, error.why) from error

        def infer(call: Arrays) -> Arrays:
            try:
                found: Arrays = session.infer(call)
            except EdgekitError as error:
                raise CheckFailed(error.what, error.why) from error
            return found

        with session:
            outputs = self._outputs(candidate.name, infer, session.batch or self._batch or BATCH)
        if self._expected is not None and _forms(outputs) != _forms(self._expected):
            raise CheckFailed(
                "Its outputs are not the source's.",
                f"It gives {_forms(outputs)}; the source gives {_forms(self._expected)}.",
            )
        return outputs

    def _outputs(self, name: str, infer: Infer, size: int) -> Arrays:
        """Outputs for all samples, in calls of ``size``: one pass over the data."""
        origin = self._dataset.origin
        calls: list[Arrays] = []
        starts = range(0, len(self._dataset), size)
        for start in track(starts, f"Evaluating {name} on {origin}"):
            count = min(size, len(self._dataset) - start)
            outputs = infer(_stack(self._dataset, start, count, size))
            calls.append({name: value[:count] for name, value in outputs.items()})
            if not self._metrics:
                self._metrics = self._chosen(calls[0])
        return _joined(calls, name)

    def _chosen(self, outputs: Arrays) -> list[Metric]:
        """The metrics, each found able to judge such outputs before all samples are run."""
        from edgekit.metrics.classes import scores_of

        subject, scores = self._subject, scores_of(outputs)
        chosen = list(self._asked)
        if not chosen and self._labels is not None and scores is not None:
            # Among five classes or fewer, five are always right.
            names = ("top1", "top5")[: 1 + (scores.shape[1] > 5)]
            chosen += [load_metric(name) for name in names]
        if not self._asked and subject.model is not None and subject.candidates:
            chosen.append(load_metric("cosine"))
        if not chosen:
            compared = subject.missing or "there is no artifact to compare with it"
            raise EdgekitError(
                f"There is nothing to judge {subject.name} by.",
                f"Its source: {compared}; and {self._dataset.origin} has no labels, or the "
                "outputs are no class scores.",
                "Give data with labels (or --labels), or a --metric of your own.",
            )
        for metric in chosen:
            metric.require(outputs, self._labels, subject.model is not None)
        return chosen

    def _row(self, name: str, runtime: str, outputs: Arrays) -> Row:
        scores = {metric.name: self._score(metric, outputs) for metric in self._metrics}
        return Row(name, runtime, "evaluated", scores)

    def _score(self, metric: Metric, outputs: Arrays) -> Score:
        given = (self._labels, self._expected)
        value = metric.score(outputs, *given)
        hits = metric.hits(outputs, *given) if metric.hits else None
        score = Score(value, metric.unit, confidence.share(hits) if hits is not None else None)
        if metric.compares or self._expected is None or outputs is self._expected:
            return score
        difference = 100 * (value - metric.score(self._expected, *given))
        if metric.hits is None or hits is None:
            return dataclasses.replace(score, difference=difference)
        low, high = confidence.difference(hits, metric.hits(self._expected, *given))
        interval = (100 * low, 100 * high)
        return dataclasses.replace(score, difference=difference, difference_interval=interval)


def _samples(
    subject: Subject, data: Any, labels: Path | Array | None, samples: int | None, seed: int
) -> tuple[Dataset, Array | None]:
    """The samples to judge by, and a row of labels for each, or None."""
    import numpy as np

    dataset = open_data(data, subject.inputs, subject.preprocess)
    own = None if dataset.labels is None else np.array(dataset.labels)
    targets = own if labels is None else _given(labels, dataset)
    if samples is None:
        return dataset, targets
    numbered = dataclasses.replace(dataset, labels=tuple(range(len(dataset))))
    taken = numbered.take(samples, seed)
    return taken, None if targets is None else targets[list(taken.labels or ())]


def _given(labels: Path | Array, dataset: Dataset) -> Array:
    """The labels that were given beside the data, one row a sample."""
    import numpy as np

    found = labels
    if isinstance(labels, str | Path):
        try:
            found = np.load(labels, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise EdgekitError(
                f"The labels {labels} cannot be read.", str(error), "Save them with numpy.save."
            ) from error
    if not isinstance(found, np.ndarray) or found.ndim == 0 or len(found) != len(dataset):
        shape = found.shape if isinstance(found, np.ndarray) else type(found).__name__
        raise EdgekitError(
            "The labels are not one row a sample.",
            f"They are {shape}; {dataset.origin} holds {len(dataset)} samples.",
            "Give one array (.npy), in the order of the samples.",
        )
    return found


def _stack(dataset: Dataset, start: int, count: int, size: int) -> Arrays:
    """``count`` samples from ``start`` as one call; the last one fills it up to ``size``."""
    import numpy as np

    samples = [dataset.read(index) for index in range(start, start + count)]
    if len({tuple(value.shape for value in sample.values()) for sample in samples}) > 1:
        raise EdgekitError(
            f"{dataset.origin}: samples {start} to {start + count - 1} have different lengths.",
            "They cannot be in one call.",
            "Pass --batch 1.",
        )
    samples += samples[-1:] * (size - count)
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def _call(model: Model, inputs: Arrays) -> Arrays:
    from edgekit.families import probe

    try:
        return run_module(model.module, inputs, model.outputs)
    except Exception as error:
        shapes = ", ".join(f"{name} {value.shape}" for name, value in inputs.items())
        raise probe.failed(
            f"{model.source} does not run on {shapes}.", error, "Pass another --batch."
        ) from error


def _joined(calls: list[Arrays], name: str) -> Arrays:
    """The outputs of all calls as one, read-only: no metric may change what others see."""
    import numpy as np

    for output in calls[0]:
        forms = {call[output].shape[1:] for call in calls}
        if len(forms) > 1:
            raise EdgekitError(
                f"{name} gives outputs of different shapes: {output} {sorted(forms)}.",
                "Metrics take one array for all samples.",
                "Give samples of one length.",
            )
    joined = {output: np.concatenate([call[output] for call in calls]) for output in calls[0]}
    for value in joined.values():
        value.flags.writeable = False
    return joined


def _forms(outputs: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in outputs.items()}

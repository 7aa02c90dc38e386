"""Work: the pieces of one recipe, each made when it is first asked for, and only once."""

from __future__ import annotations

import dataclasses
import gc
import tempfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import data, families, files
from edgekit.converters import Artifact
from edgekit.drift import TOLERANCES, Drift, compare, first_divergence
from edgekit.errors import CheckFailed, EdgekitError
from edgekit.families import onnx
from edgekit.families.factory import code_file
from edgekit.find import find
from edgekit.model import Graph, Input, Model, run_module
from edgekit.progress import say, stage, track
from edgekit.recipe import Recipe
from edgekit.targets import Target
from edgekit.targets.rules import rules_for
from edgekit.targets.runtimes import runtime_for

if TYPE_CHECKING:
    from edgekit.data import Dataset
    from edgekit.quantize.calibrate import Store
    from edgekit.quantize.post_training import Quantized
    from edgekit.targets.runtimes import Arrays

#: Rewrites that hold for every runtime; they come before calibration.
COMMON_REWRITES = (
    "batch_norm",
    "constants",
    "composites",
    "resize",
    "windows",
    "scale_first",
    "select_first",
)
#: Without evaluation data, this share of the calibration data is kept for judging.
HELD_OUT = 0.25
#: Samples in one call when a dynamic batch is judged, after the first call with one.
DYNAMIC_BATCH = 3


class Work:
    """A recipe, and the data where it is a Python object rather than a path."""

    def __init__(
        self,
        recipe: Recipe,
        calibration: Iterable[Any] | None = None,
        evaluation: Iterable[Any] | None = None,
    ) -> None:
        self.recipe = recipe
        self._given = {"calibration": calibration, "evaluation": evaluation}
        self._opened: dict[str, Dataset] = {}
        #: What quantization found, once it has: its methods move values between layers.
        self.made: Quantized | None = None
        if not (recipe.random_calibration or self._sources()):
            raise EdgekitError(
                "There is no data to check the result with.",
                f"{recipe.model} would be converted unproven"
                + (", and quantized without real activations." if self._calibrated else "."),
                "Pass --calibration DATA (a folder of images, .npz, ...) or --evaluation DATA; "
                "or --random-calibration, and the bundle will say so.",
            )
        if recipe.scheme is None and (recipe.exclude or recipe.scales):
            raise EdgekitError(
                f"--exclude and --scales have no meaning in {recipe.precision}.",
                "They say which modules are quantized, and how.",
                "Drop them, or ask for --precision int8.",
            )
        if self._calibrated and not (recipe.random_calibration or self._source("calibration")):
            raise EdgekitError(
                f"{recipe.precision} needs calibration data.",
                "",
                "Pass --calibration DATA, or --scales TABLE.",
            )

    @cached_property
    def model(self) -> Model:
        """The source model, with the recipe's batch."""
        return load_model(self.recipe)

    @cached_property
    def graph(self) -> Graph:
        """The model exported in fp32, with the rewrites common to all runtimes."""
        return export(self.model)

    @cached_property
    def datasets(self) -> tuple[Dataset, Dataset]:
        """Samples for calibration and for judging, disjoint unless given as such."""
        recipe, inputs = self.recipe, self.model.inputs
        if recipe.random_calibration:
            say("Using random numbers as data, as asked: accuracy is unknown.")
            pair = [data.random_data(inputs, recipe.samples, recipe.seed + i) for i in (0, 1)]
            return pair[0], pair[1]
        opened = {name: self._open(name) for name in self._sources()}
        judge = opened.get("evaluation", opened.get("calibration"))
        calibrate = opened.get("calibration", judge)
        if calibrate is None or judge is None:
            raise KeyError("no data")
        if calibrate is judge and self._calibrated:
            judge, calibrate = judge.split(HELD_OUT, recipe.seed)
        return self._calibrating(calibrate), self._judging(judge)

    @cached_property
    def batches(self) -> list[Arrays]:
        """The judging samples as inputs by name, in the recipe's batch size.

        A dynamic batch is judged at two sizes: one sample first, then several at a time.
        """
        dynamic = self.recipe.batch == "dynamic"
        size = 1 if dynamic else int(self.recipe.batch)
        _, judge = self.datasets
        if len(judge) < size:
            raise EdgekitError(
                f"{judge.origin} is too small to judge with.",
                f"It has {len(judge)} samples; one call takes {size}.",
                "Give more data, or a smaller --batch.",
            )
        return list(stacked(judge, size, DYNAMIC_BATCH if dynamic else size))

    @cached_property
    def expected(self) -> list[Arrays]:
        """The source model's outputs for ``batches``."""
        model = self.model
        judge = self.datasets[1]
        runs = track(self.batches, f"Running the source on {judge.origin}")
        return [run_module(model.module, batch, model.outputs) for batch in runs]

    def quantize(self, store: Store | None = None, rounding: bool = True) -> Quantized:
        """Calibrate, or take the table that the recipe names.

        Args:
            store: where calibration keeps what it saw, to go on after it was killed.
            rounding: False leaves weights unrounded: what is then applied to the float graph
                leaves its function as it is.
        """
        from edgekit.edit import Editor
        from edgekit.quantize.effort import plan_for
        from edgekit.quantize.post_training import Quantized, quantize
        from edgekit.quantize.sites import find_sites

        recipe = self.recipe
        if recipe.scheme is None:
            raise ValueError(recipe.precision)
        if recipe.scales is not None:
            editor = Editor(self.graph)
            kept = {site.name for site in find_sites(editor, recipe.exclude)}
            excluded = {site.name for site in find_sites(editor)} - kept
            made = Quantized.load(recipe.scales)
            return dataclasses.replace(made, table=made.table.without(excluded))
        plan = plan_for(recipe.scheme, recipe.effort, recipe.method)
        if not rounding:
            plan = dataclasses.replace(plan, round=())
        size = recipe.batch_size or (1 if recipe.batch == "dynamic" else recipe.batch)
        graph = self.graph
        if recipe.batch not in ("dynamic", size):
            graph = export(self.model.with_batch("dynamic"))
        made = quantize(graph, self.datasets[0], plan, recipe.exclude, size, store, rounding)
        gc.collect()  # fx graphs are cycles, and those in between hold copies of the weights
        return made

    def lower(self, target: Target, quantized: Quantized | None) -> Graph:
        """The graph as the target's runtime wants it, in the recipe's precision."""
        from edgekit.quantize.fp16 import rewrite_fp16
        from edgekit.quantize.place import place

        rules, precision = rules_for(target), self.recipe.precision
        graph = self.graph if quantized is None else quantized.applied(self.graph)
        if quantized is not None:
            graph = _rewritten(graph, rules.quantized_rewrites)
            graph = place(graph, quantized.table, rules, precision)
        graph = _rewritten(graph, rules.rewrites)
        gc.collect()
        if precision != "fp32" and (precision == "fp16" or target.float_dtype == "fp16"):
            if rules.explicit_casts:
                return rewrite_fp16(graph, precision)
            return graph.replace(graph.exported, precision)
        return graph

    def convert(self, source: Graph | Path, format: str, out: Path, target: Target) -> Artifact:
        """One artifact, written to ``out``."""
        with stage(f"{target.name}: making {format}"):
            artifact: Artifact = find("converters", format).convert(source, out, target)
        return artifact

    def run(self, artifact: Path, runtime: str) -> list[Arrays]:
        """The artifact's outputs for ``batches``."""
        with find("runtimes", runtime).open(artifact, None) as session:
            runs = track(self.batches, f"Running {artifact.name} on {self.datasets[1].origin}")
            return [session.infer(batch) for batch in runs]

    def judge(self, artifact: Path, runtime: str) -> tuple[Drift, float | None, str]:
        """Drift, share of correct labels, and why the artifact is out of tolerance (or '')."""
        actual = self.run(artifact, runtime)
        drift = compare(self.expected, actual)
        tolerance = TOLERANCES[self.recipe.precision]
        failure = tolerance.failure(drift)
        if failure:
            batch = self.batches[0]
            source = self.graph if self.made is None else self.made.applied(self.graph)
            reference = trace_graph(source, batch)
            traced = find("runtimes", runtime).trace(artifact, batch)
            layer = first_divergence(self.graph, reference, traced, tolerance.cosine)
            failure = f"{failure}; first diverges at {layer}"
        return drift, self.top1(actual), failure

    def top1(self, outputs: list[Arrays]) -> float | None:
        """Share of correct labels by the first output, or None where that has no meaning."""
        import numpy as np

        from edgekit.metrics import top1
        from edgekit.metrics.classes import scores_of

        labels = self.datasets[1].labels
        joined = {name: np.concatenate([call[name] for call in outputs]) for name in outputs[0]}
        scores = scores_of(joined)
        if labels is None or scores is None or max(labels) >= scores.shape[1]:
            return None
        return top1.score(joined, np.array(labels[: len(scores)]), None)

    def single(self, target: Target, format: str, out: Path) -> tuple[Artifact, str, Drift | None]:
        """One artifact at ``out``, with what it is made from, checked before it is named so.

        Returns:
            The artifact; ``verified``, or why nothing here can run it; and its drift.

        Raises:
            CheckFailed: it is out of tolerance; nothing is written.
        """
        self.made = self.quantize() if self.recipe.scheme else None
        graph = self.lower(target, self.made)
        status, drift = "", None
        with files.atomic(out) as room, tempfile.TemporaryDirectory() as scratch:
            source: Graph | Path = graph
            for name in _chain(format):
                path = room if name == format else Path(scratch) / find("converters", name).NAME
                artifact = self.convert(source, name, path, target)
                status, drift = self._judged(path, target, name)
                source = path
        return dataclasses.replace(artifact, path=out), status, drift

    def artifact(
        self, target: Target, format: str, folder: Path, quantized: Quantized | None
    ) -> Path:
        """The artifact of a format, made in ``folder`` and not judged; None leaves all in float."""
        source: Graph | Path = self.lower(target, quantized)
        for name in _chain(format):
            path: Path = folder / find("converters", name).NAME
            self.convert(source, name, path, target)
            source = path
        return path

    def _judged(self, artifact: Path, target: Target, format: str) -> tuple[str, Drift | None]:
        runtime = runtime_for(target.runtime, format)
        absent = "on the device" if runtime is None else find("runtimes", runtime).unavailable()
        if runtime is None or absent:
            return f"built, not run: {absent}", None
        drift, _, failure = self.judge(artifact, runtime)
        if failure:
            raise CheckFailed(f"{artifact.name} is not equal to {self.recipe.model}.", failure)
        return "verified", drift

    def fingerprint(self) -> dict[str, Any]:
        """What the recipe's results depend on outside of it: files, data and code."""
        recipe = self.recipe
        family, _, rest = recipe.model.partition("/")
        found: dict[str, Any] = {"model": recipe.model}
        if families.is_onnx(recipe.model):
            found["model"] = ["onnx", *onnx.fingerprint(Path(recipe.model).expanduser())]
        elif ":" in recipe.model and not rest:
            code = code_file(recipe.model)
            found["code"] = files.sha256(code) if code else None
        elif Path(rest).is_dir():
            found["model"] = [family, files.fingerprint(Path(rest))]
        for name in ("checkpoint", "scales"):
            path: Path | None = getattr(recipe, name)
            found[name] = files.fingerprint(path) if path else None
        for name, source in self._sources().items():
            path_given = isinstance(source, Path)
            found[name] = files.fingerprint(source) if path_given else self._open(name).fingerprint
        return found

    @property
    def _calibrated(self) -> bool:
        return self.recipe.scheme is not None and self.recipe.scales is None

    def _source(self, name: str) -> Any:
        given = self._given[name]
        return given if given is not None else getattr(self.recipe, name)

    def _sources(self) -> dict[str, Any]:
        pairs = {name: self._source(name) for name in self._given}
        return {name: source for name, source in pairs.items() if source is not None}

    def _open(self, name: str) -> Dataset:
        """A source as a dataset, opened once: a Python iterable may end after one pass."""
        if name not in self._opened:
            source = self._source(name)
            model = self.model
            self._opened[name] = data.open_data(source, model.inputs, model.preprocess)
        return self._opened[name]

    def _calibrating(self, dataset: Dataset) -> Dataset:
        recipe = self.recipe
        asked = "samples" in recipe.model_fields_set and self._calibrated
        if asked and recipe.samples > len(dataset):
            raise EdgekitError(
                f"{dataset.origin} has {len(dataset)} samples to calibrate with, "
                f"fewer than the {recipe.samples} asked for.",
                ""
                if self._source("evaluation") is not None
                else f"{HELD_OUT:.0%} of them are kept to judge with.",
                f"Ask for --samples {len(dataset)}, or give more data.",
            )
        return dataset.take(min(recipe.samples, len(dataset)), recipe.seed)

    def _judging(self, dataset: Dataset) -> Dataset:
        return dataset.take(min(self.recipe.evaluation_samples, len(dataset)), self.recipe.seed)


def load_model(recipe: Recipe) -> Model:
    """The recipe's model, with its weights and batch."""
    options = families.Options(
        checkpoint=recipe.checkpoint,
        random_weights=recipe.random_weights,
        allow_partial=recipe.allow_partial,
        inputs=tuple(Input.parse(text) for text in recipe.inputs),
        arguments=recipe.arguments,
    )
    with stage(f"Loading {recipe.model}"):
        return families.load(recipe.model, options).with_batch(recipe.batch)


def export(model: Model) -> Graph:
    """A model as a graph in fp32, with the rewrites common to all runtimes."""
    with stage(f"Exporting {model.source}"):
        return _rewritten(model.export(), COMMON_REWRITES)


def trace_graph(graph: Graph, inputs: Arrays) -> dict[str, Any]:
    """Every tensor that the graph computes in PyTorch, by node name, for one call."""
    import torch

    values: dict[str, Any] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor):
                values[n.name] = value.numpy()
            return value

    with torch.inference_mode():
        Recorder(graph.exported.module(check_guards=False)).run(
            *(torch.from_numpy(inputs[spec.name]) for spec in graph.inputs)
        )
    return values


def _chain(format: str) -> list[str]:
    """The converters to run, in order, to get this format."""
    accepts = find("converters", format).ACCEPTS
    return [format] if accepts == "graph" else [*_chain(accepts), format]


def _rewritten(graph: Graph, names: Iterable[str]) -> Graph:
    for name in names:
        graph = find("rewrites", name).rewrite(graph)
    return graph


def stacked(dataset: Dataset, size: int, next_size: int) -> Iterator[Arrays]:
    """A batch of ``size``, then batches of ``next_size``; a smaller remainder is left out."""
    import numpy as np

    batch: list[dict[str, Any]] = []
    for sample in dataset:
        batch.append(sample)
        if len(batch) == size:
            yield {name: np.stack([s[name] for s in batch]) for name in batch[0]}
            batch, size = [], next_size

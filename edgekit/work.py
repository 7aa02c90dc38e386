"""Work: the pieces of one recipe, each made when it is first asked for, and only once."""

from __future__ import annotations

import dataclasses
import gc
import tempfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import files, pipeline
from edgekit.converters import Artifact
from edgekit.drift import Drift, compare, first_divergence, tolerance_for
from edgekit.errors import CheckFailed
from edgekit.find import find
from edgekit.model import Graph, Model
from edgekit.progress import say, stage, track
from edgekit.source import Source
from edgekit.targets import Target
from edgekit.targets.rules import rules_for
from edgekit.targets.runtimes import runtime_for
from edgekit.whole import opened

if TYPE_CHECKING:
    from edgekit.converters.streams import Split
    from edgekit.quantize.calibrate import Store
    from edgekit.quantize.post_training import Quantized
    from edgekit.targets.runtimes import Arrays

#: Rewrites that hold for every runtime; they come before calibration.
COMMON_REWRITES = (
    "batch_norm",
    "constants",
    "real_rotary",
    "angles",
    "composites",
    "resize",
    "windows",
    "scale_first",
    "select_first",
)


class Work(Source):
    """What is made of a recipe's model."""

    #: What quantization found, once it has: its methods move values between layers.
    made: Quantized | None = None
    #: Where long work keeps what it needs to go on; None keeps nothing.
    keep: Path | None = None

    @cached_property
    def graph(self) -> Graph:
        """The model exported in fp32, with the rewrites common to all runtimes."""
        return export(self.model)

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
        trained = recipe.qat is not None and rounding
        graph = self.graph
        if recipe.batch != "dynamic" and (trained or recipe.batch != size):
            graph = export(self.model.with_batch("dynamic"))
        made = quantize(graph, self.datasets[0], plan, recipe.exclude, size, store, rounding)
        if trained:
            made = self._trained(graph, made)
        gc.collect()  # fx graphs are cycles, and those in between hold copies of the weights
        return made

    def _trained(self, graph: Graph, made: Quantized) -> Quantized:
        """After quantization-aware training, as the recipe's ``qat`` says."""
        from edgekit.compress import Context, parse
        from edgekit.compress.distill import Distill
        from edgekit.compress.distillation.quantized import train_quantized

        options = parse({"distill": self.recipe.qat or {}})
        if not isinstance(options, Distill):
            raise TypeError(options)
        data, training = self.fitting
        folder = self.keep / "qat" if self.keep else None
        context = Context(data, training, folder=folder, seed=self.recipe.seed)
        return train_quantized(options, graph, made, context)

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
            if self.recipe.split_streams:
                cut = source if isinstance(source, Path) else self._split(source)
                return pipeline.convert(cut, format, out, target)
            artifact: Artifact = find("converters", format).convert(source, out, target)
        return artifact

    def named(self, format: str) -> str:
        """What an artifact of this recipe is called."""
        name = str(find("converters", format).NAME)
        return f"{name}{pipeline.SUFFIX}" if self.recipe.split_streams else name

    def _split(self, graph: Graph) -> Split:
        from edgekit.converters.streams import split

        made = split(graph, self.recipe.stream_starts or dict(self.model.streams))
        steps = made.segments[-1].step + 1
        say(f"Split by streams: {len(made.segments)} segments in {steps} steps.")
        if made.repeated:
            say(f"{made.repeated / 1e6:.1f} MB of weights are stored more than once.")
        return made

    def run(self, artifact: Path, runtime: str, calls: list[Arrays] | None = None) -> list[Arrays]:
        """The artifact's outputs for these calls; None are ``batches``."""
        calls = self.batches if calls is None else calls
        with opened(runtime, artifact) as session:
            runs = track(calls, f"Running {artifact.name} on {self.datasets[1].origin}")
            return [session.infer(call) for call in runs]

    def judge(self, artifact: Path, runtime: str) -> tuple[Drift, float | None, str]:
        """Drift, share of correct labels, and why the artifact is out of tolerance (or '')."""
        outputs = self.run(artifact, runtime, [*self.batches, *self.shorter])
        actual = outputs[: len(self.batches)]
        drift = compare([*self.expected, *self.shorter_expected], outputs)
        tolerance = tolerance_for(self.recipe.precision, self.graph.discrete)
        failure = tolerance.failure(drift)
        if failure:
            batch = self.graph.complete(self.batches[0])
            source = self.graph if self.made is None else self.made.applied(self.graph)
            reference = trace_graph(source, batch)
            traced = pipeline.trace(runtime, artifact, batch)
            layer = first_divergence(self.graph, reference, traced, tolerance.cosine)
            failure = f"{failure}; first diverges at {layer}"
        return drift, self.top1(actual), failure

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
                path = room if name == format else Path(scratch) / self.named(name)
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
            path: Path = folder / self.named(name)
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

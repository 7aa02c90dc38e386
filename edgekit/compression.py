"""Compression: a recipe's passes, one after another.

What a pass has made is kept until all are done, and passes that take long keep their own state, so
that the same command goes on where it was stopped. Nothing of that is in the way of a reader: it
lies in a hidden sibling of what is made.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import files, interrupt
from edgekit.compress import Context, Pass, apply, describe, entry_of
from edgekit.errors import EdgekitError
from edgekit.families import compressed as folders
from edgekit.progress import say
from edgekit.source import Source

if TYPE_CHECKING:
    import torch

    from edgekit.model import Model
    from edgekit.recipe import Recipe

#: Fields of a recipe, besides its passes, that a compressed model depends on.
_FIELDS = "arguments inputs random_weights allow_partial samples seed random_calibration".split()


@dataclasses.dataclass(frozen=True)
class Stage:
    """A model on its way: the source, and after each pass.

    Attributes:
        name: ``source``, or the pass as ``--pass`` takes it.
        parameters: how many weights.
        operations: multiply-accumulates of a call.
        top1: share of correct labels, or None where that has no meaning.
        error: squared distance of the outputs from the source's, over the source's squares.
        seconds: that the pass took.
    """

    name: str
    parameters: int
    operations: int
    top1: float | None
    error: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A compressed model and how it came about, the source first."""

    model: Model
    stages: tuple[Stage, ...]


def compress(
    recipe: Recipe,
    out: Path,
    calibration: Iterable[Any] | None = None,
    evaluation: Iterable[Any] | None = None,
) -> tuple[Stage, ...]:
    """Run the recipe's passes and write the result, which ``compressed/OUT`` loads, to ``out``.

    A stopped run goes on where it stopped; a finished one, asked for again, returns at once.

    Args:
        calibration, evaluation: samples as Python iterables, in place of the recipe's paths.

    Returns:
        The stages, the source first.

    Raises:
        EdgekitError: bad input, or a pass that cannot be done; nothing is written to ``out``, and
            what the passes before it made is kept for another try.
    """
    if not recipe.passes:
        raise EdgekitError(
            f"{recipe.model}: no pass was asked for.",
            "",
            "Pass --pass NAME[:OPTION=VALUE,...]; `edgekit passes` lists them.",
        )
    source = Source(recipe, calibration, evaluation)
    request = files.digest([_facts(source), recipe.passes])
    if (out / folders.CONFIG).exists():
        held = folders.read(out)
        if held.get("request") == request:
            say(f"{out} is up to date.")
            return tuple(Stage(**stage) for stage in held["stages"])
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EdgekitError(
            f"{out} exists and is not a compressed model.",
            "edgekit does not overwrite what it did not make.",
            "Choose another --output, or remove it.",
        )
    keep = kept_beside(out)
    made = run(source, keep)
    if first():
        with files.atomic(out) as room:
            save(source, made, room, request)
        shutil.rmtree(keep, ignore_errors=True)
    return made.stages


def kept_beside(out: Path) -> Path:
    """Where unfinished passes for ``out`` are kept."""
    return out.parent / f".{out.name}.passes"


def run(source: Source, keep: Path | None) -> Compressed:
    """The source's model after its recipe's passes.

    Args:
        keep: a folder for what is needed to go on; None keeps nothing.
    """
    return _Run(source, keep).all()


def save(source: Source, made: Compressed, folder: Path, request: str = "") -> None:
    """Write a compressed model where ``compressed/FOLDER`` finds it."""
    original, made_from = _origin(source)
    stages = [dataclasses.asdict(stage) for stage in made.stages]
    facts = {"request": request, "stages": stages, "passes": list(source.recipe.passes)}
    folders.save(made.model, original, made_from, folder, facts)


def load(source: Source, folder: Path) -> Compressed:
    """What ``save`` wrote, as a model of this source."""
    from edgekit.families import Options

    model = folders.load(str(folder), Options()).with_batch(source.recipe.batch)
    model = dataclasses.replace(model, source=source.original.source)
    return Compressed(model, tuple(Stage(**stage) for stage in folders.read(folder)["stages"]))


class _Run:
    """The passes of one recipe, in order."""

    def __init__(self, source: Source, keep: Path | None) -> None:
        self.source, self.keep = source, keep
        self.facts = _facts(source)
        _check(source.recipe)

    def all(self) -> Compressed:
        recipe, original = self.source.recipe, self.source.original
        self.expected = self._outputs(original)
        made = Compressed(original, (self._stage("source", original, 0.0),))
        for place, step in enumerate(recipe.steps):
            interrupt.check()
            made = self._one(place, step, made)
        return made

    def _one(self, place: int, step: Pass, before: Compressed) -> Compressed:
        """A pass, or what it made before the run was stopped."""
        name = f"{place}-{next(iter(entry_of(step)))}"
        key = files.digest([self.facts, self.source.recipe.passes[: place + 1]])
        room = self.keep / name if self.keep else None
        if room is not None and (room / folders.CONFIG).exists():
            if folders.read(room).get("request") == key:
                say(f"{describe(step)}: done before.")
                return load(self.source, room)
            shutil.rmtree(room)
        say(f"Pass: {describe(step)}")
        start = time.perf_counter()
        model = apply(step, before.model, self._context(name, key))
        seconds = time.perf_counter() - start
        made = Compressed(model, (*before.stages, self._stage(describe(step), model, seconds)))
        if room is not None and first():
            with files.atomic(room) as unfinished:
                save(self.source, made, unfinished, key)
        return made

    def _context(self, name: str, key: str) -> Context:
        from edgekit import targets
        from edgekit.tuning.call_cost import call_cost

        recipe = self.source.recipe
        measured, training = self.source.fitting
        target = targets.load(recipe.targets[0]) if recipe.targets else None
        return Context(
            data=measured,
            training=training,
            teacher=self.source.original,
            target=target,
            latency=call_cost(recipe, target) if target else None,
            folder=self.keep / f"{name}.{key[:12]}" if self.keep else None,
            seed=recipe.seed,
        )

    def _stage(self, name: str, model: Model, seconds: float) -> Stage:
        import numpy as np

        from edgekit.compress import measure

        actual = self._outputs(model)
        pairs = [
            (first[name].astype(np.float64), second[name].astype(np.float64))
            for first, second in zip(self.expected, actual, strict=True)
            for name in first
        ]
        total = sum(float(np.square(a).sum()) for a, _ in pairs)
        wrong = sum(float(np.square(a - b).sum()) for a, b in pairs)
        return Stage(
            name=name,
            parameters=measure.parameters(model.module),
            operations=measure.operations(model),
            top1=self.source.top1(actual),
            error=wrong / total if total else 0.0,
            seconds=seconds,
        )

    def _outputs(self, model: Model) -> list[Any]:
        from edgekit.model import run_module

        return [run_module(model.module, batch, model.outputs) for batch in self.source.batches]


def _check(recipe: Recipe) -> None:
    """Raise for what cannot be compressed."""
    from edgekit.families import is_onnx

    if is_onnx(recipe.model):
        raise EdgekitError(
            f"{recipe.model} cannot be compressed.",
            "Passes change PyTorch modules; an ONNX file has none.",
            "Give the checkpoint that it was exported from.",
        )
    timed = [step for step in recipe.steps if getattr(step, "latency", None) is not None]
    if timed and os.environ.get("WORLD_SIZE", "1") != "1":
        raise EdgekitError(
            f"{describe(timed[0])} cannot run in several processes.",
            "Each would measure other latencies, and so make another model.",
            "Run it alone first, then distil its result under torchrun.",
        )
    if recipe.mode == "stream":
        raise EdgekitError(
            f"{recipe.model} cannot be compressed as a stream.",
            "Passes run whole sequences, and the states of a stream have the sizes of its source.",
            "Drop --mode stream.",
        )


def _facts(source: Source) -> dict[str, Any]:
    """All, besides the passes, that their result depends on."""
    shown = source.recipe.model_dump(mode="json")
    fields = {name: shown[name] for name in _FIELDS}
    versions = {name: version(name) for name in ("edgekit", "torch")}
    target = source.recipe.targets[:1]
    return {**fields, **source.fingerprint(), **versions, "target": target}


def _origin(source: Source) -> tuple[torch.nn.Module, dict[str, Any]]:
    """What a compressed model is described against, and how it is made: never compressed itself."""
    recipe = source.recipe
    family, _, rest = recipe.model.partition("/")
    if family != "compressed":
        made_from = {
            "model": recipe.model,
            "arguments": dict(recipe.arguments),
            "inputs": list(recipe.inputs),
        }
        return source.original.module, made_from
    folder = Path(rest).expanduser()
    made_from = dict(folders.read(folder)["source"])
    original = folders.load_source(folder, made_from).module
    family, _, rest = str(made_from["model"]).partition("/")
    if rest == folders.SOURCE:
        made_from["model"] = f"{family}/{folder / folders.SOURCE}"
    return original, made_from


def first() -> bool:
    """Whether this process writes: the first of those that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"

"""Source: the model and the data that a recipe names, each opened when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import data, families, files
from edgekit.errors import EdgekitError
from edgekit.families import onnx
from edgekit.families.factory import code_file
from edgekit.model import Dim, Input, Model, run_module
from edgekit.progress import say, stage, track
from edgekit.recipe import Recipe

if TYPE_CHECKING:
    from edgekit.data import Dataset
    from edgekit.targets.runtimes import Arrays

#: Without evaluation data, this share of the calibration data is kept for judging.
HELD_OUT = 0.25
#: Samples in one call when a dynamic batch is judged, after the first call with one.
DYNAMIC_BATCH = 3
#: The dimension of a sequence.
LENGTH = "length"


class Source:
    """A recipe's model and data; the data may be Python objects rather than paths."""

    def __init__(
        self,
        recipe: Recipe,
        calibration: Iterable[Any] | None = None,
        evaluation: Iterable[Any] | None = None,
    ) -> None:
        self.recipe = recipe
        self._given = {"calibration": calibration, "evaluation": evaluation}
        self._opened: dict[str, Dataset] = {}
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
        if recipe.qat is not None and not self._calibrated:
            raise EdgekitError(
                f"--qat has no meaning in {recipe.precision}"
                + (" with --scales." if recipe.scales else "."),
                "It trains a quantized model from its calibration on.",
                "Drop it, or ask for --precision int8 with --calibration DATA.",
            )
        if self._calibrated and not (recipe.random_calibration or self._source("calibration")):
            raise EdgekitError(
                f"{recipe.precision} needs calibration data.",
                "",
                "Pass --calibration DATA, or --scales TABLE.",
            )

    @cached_property
    def original(self) -> Model:
        """The model before any pass, with the recipe's batch."""
        return load_model(self.recipe)

    @cached_property
    def model(self) -> Model:
        """The source of what is converted: the original after the recipe's passes."""
        if not self.recipe.passes:
            return self.original
        from edgekit.compression import run

        return run(self, None).model

    @cached_property
    def datasets(self) -> tuple[Dataset, Dataset]:
        """Samples for calibration and for judging, disjoint unless given as such."""
        calibrate, judge = self._datasets
        return self._calibrating(calibrate), judge

    @cached_property
    def fitting(self) -> tuple[Dataset | None, Dataset | None]:
        """What passes measure on, and what they train on, which is all that there is of it."""
        if not (self.recipe.random_calibration or self._source("calibration") is not None):
            measured = None
        else:
            measured = self.datasets[0]
        if self.recipe.training is not None:
            return measured, self._open("training")
        return measured, None if measured is None else self._datasets[0]

    @cached_property
    def _datasets(self) -> tuple[Dataset, Dataset]:
        """As ``datasets``, before calibration takes its samples."""
        recipe, inputs = self.recipe, self.original.inputs
        if recipe.random_calibration:
            say("Using random numbers as data, as asked: accuracy is unknown.")
            pair = [data.random_data(inputs, recipe.samples, recipe.seed + i) for i in (0, 1)]
            return pair[0], pair[1]
        opened = {name: self._open(name) for name in self._sources()}
        judge = opened.get("evaluation", opened.get("calibration"))
        calibrate = opened.get("calibration", judge)
        if calibrate is None or judge is None:
            raise KeyError("no data")
        if calibrate is judge and (self._calibrated or recipe.passes):
            judge, calibrate = judge.split(HELD_OUT, recipe.seed)
        return calibrate, self._judging(judge)

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

    @cached_property
    def shorter(self) -> list[Arrays]:
        """Calls of other lengths than the data's, where the length varies: the first judging
        call cut to its least length, and to an odd one.
        """
        dims = {dim.name: dim for spec in self.model.inputs for dim in spec.dims}
        if LENGTH not in dims:
            return []
        call = self.batches[0]
        axes = {
            spec.name: axis
            for spec in self.model.inputs
            for axis, size in enumerate(spec.shape)
            if isinstance(size, Dim) and size.name == LENGTH
        }
        whole = min(call[name].shape[axis] for name, axis in axes.items())
        wanted = {dims[LENGTH].least, max(dims[LENGTH].least, (whole // 2) | 1)}
        return [
            {n: v.take(range(length), axes[n]) if n in axes else v for n, v in call.items()}
            for length in sorted(wanted)
            if length < whole
        ]

    @cached_property
    def shorter_expected(self) -> list[Arrays]:
        """The source model's outputs for ``shorter``."""
        return [run_module(self.model.module, call, self.model.outputs) for call in self.shorter]

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
        options = [v for entry in recipe.passes for given in entry.values() for v in given.values()]
        named = {text: _place(text) for text in options if isinstance(text, str)}
        found["named"] = {text: files.fingerprint(path) for text, path in named.items() if path}
        if recipe.training is not None:
            found["training"] = files.fingerprint(recipe.training)
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
            source: Any = self.recipe.training if name == "training" else self._source(name)
            model = self.original
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


def _place(text: str) -> Path | None:
    """The file or folder that a pass's option names, as a path or as ``family/FOLDER``."""
    places = (Path(part).expanduser() for part in (text, text.partition("/")[2]) if part)
    return next((place for place in places if place.exists()), None)


def load_model(recipe: Recipe) -> Model:
    """The recipe's model, with its weights and batch."""
    options = families.Options(
        checkpoint=recipe.checkpoint,
        random_weights=recipe.random_weights,
        allow_partial=recipe.allow_partial,
        inputs=tuple(Input.parse(text) for text in recipe.inputs),
        arguments=recipe.arguments,
        mode=recipe.mode,
        context=recipe.context,
    )
    with stage(f"Loading {recipe.model}"):
        model = families.load(recipe.model, options).with_batch(recipe.batch)
    if recipe.mode == "stream" and not model.states:
        raise EdgekitError(
            f"{recipe.model} cannot stream.",
            "It carries nothing from one call to the next.",
            "Drop --mode stream, or give a causal language model, or reference/lmuformer.",
        )
    return model


def stacked(dataset: Dataset, size: int, next_size: int) -> Iterator[Arrays]:
    """A batch of ``size``, then batches of ``next_size``; a smaller remainder is left out."""
    import numpy as np

    batch: list[dict[str, Any]] = []
    for sample in dataset:
        batch.append(sample)
        if len(batch) == size:
            yield {name: np.stack([s[name] for s in batch]) for name in batch[0]}
            batch, size = [], next_size

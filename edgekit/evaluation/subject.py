"""Subject: what is evaluated, a source model and the artifacts that were made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.bundle import MANIFEST, Bundle
from edgekit.drift import compare, tolerance_for
from edgekit.errors import EdgekitError
from edgekit.find import find, names
from edgekit.model import BATCH, Input, Model, Preprocess, run_module
from edgekit.pipeline import SUFFIX
from edgekit.recipe import Recipe
from edgekit.single import format_of, is_discrete, load_reference, runtime_of

if TYPE_CHECKING:
    from edgekit.targets.runtimes import Arrays


@dataclass(frozen=True)
class Candidate:
    """An artifact.

    Attributes:
        name: as shown; its path in the bundle.
        runtime: its runtime's name.
        absent: why it cannot be run here, in a few words, or ``""``.
    """

    name: str
    path: Path
    runtime: str
    absent: str


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and how data becomes its inputs.

    Attributes:
        model: the source, or None.
        missing: why there is no source, or ``""``.
        batch: samples that the source takes in one call, or None if any number.
        notes: what a reader of the results must know.
    """

    name: str
    inputs: tuple[Input, ...]
    preprocess: Preprocess | None
    model: Model | None
    missing: str
    batch: int | None
    candidates: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()


def is_made(subject: str | Path) -> bool:
    """Whether it is a bundle or an artifact, rather than the name of a model."""
    path = Path(subject)
    suffixes = {Path(find("converters", name).NAME).suffix for name in names("converters")} - {""}
    return (path / MANIFEST).exists() or path.suffix in {*suffixes, SUFFIX}


def open_subject(given: str | Path | Recipe, source: Recipe | None, data: Any) -> Subject:
    """The subject that the user named.

    Args:
        given: a bundle, an artifact, a model's name, or the recipe that makes a model.
        source: what a bundle's or artifact's source is; a bundle knows its own.
        data: a lone artifact without source takes its inputs' names and shapes from it.

    Raises:
        EdgekitError: there is no such thing, or a source that was named cannot be loaded.
    """
    if isinstance(given, Recipe) or not is_made(given):
        recipe = given if isinstance(given, Recipe) else Recipe.check({"model": given}, "evaluate")
        if source is not None:
            raise EdgekitError(
                f"{recipe.model} is a model, and so is {source.model}.",
                "A source is given beside a bundle or an artifact.",
                "Evaluate one at a time.",
            )
        return _of_model(recipe.model, recipe)
    path = Path(given)
    if (path / MANIFEST).exists():
        return _of_bundle(Bundle.open(path), source, data)
    runtime = find("converters", format_of(path)).RUNTIME
    candidate = Candidate(path.name, path, runtime, find("runtimes", runtime).unavailable())
    if source is not None:
        return _of_model(str(path), source, candidate)
    missing = "pass --model MODEL to compare with it"
    return Subject(str(path), _described(path, data), None, None, missing, None, (candidate,))


def _of_model(name: str, recipe: Recipe, *candidates: Candidate) -> Subject:
    from edgekit.source import load_model

    model = load_model(recipe)
    return Subject(
        name, model.inputs, model.preprocess, model, "", _fixed(recipe), tuple(candidates)
    )


def _of_bundle(bundle: Bundle, source: Recipe | None, data: Any) -> Subject:
    """Data is prepared as it was for the build, whether or not the source can be had."""
    from edgekit.source import load_model

    recipe = source or Recipe.model_validate(bundle.manifest.recipe)
    inputs, preprocess = _contract(bundle.manifest.model)
    damaged = bundle.damaged()
    model, missing = None, ""
    try:
        model = load_model(recipe)
    except EdgekitError as error:
        if source is not None:
            raise
        missing = f"{error.what} {error.why}".strip()
    if model is not None:
        missing = _other_source(bundle, _compressed(bundle, model), inputs, damaged)
    return Subject(
        name=str(bundle.path),
        inputs=inputs,
        preprocess=preprocess,
        model=None if missing else model,
        missing=missing,
        batch=_fixed(recipe),
        candidates=tuple(_candidates(bundle, damaged)),
        notes=_notes(bundle, data),
    )


def _compressed(bundle: Bundle, model: Model) -> Model:
    """What the artifacts are conversions of: the source, or what the recipe's passes made of it."""
    if not bundle.manifest.recipe.get("passes"):
        return model
    from edgekit import families
    from edgekit.flow import COMPRESSED

    return families.load(f"compressed/{bundle.path / COMPRESSED}", families.Options())


def _fixed(recipe: Recipe) -> int | None:
    return None if recipe.batch == "dynamic" else recipe.batch


def _candidates(bundle: Bundle, damaged: list[str]) -> Iterable[Candidate]:
    for row in bundle.manifest.rows:
        runtime = runtime_of(bundle, row)
        if row.path is None:
            absent = row.status
        elif row.path in damaged:
            absent = "damaged: not what was built"
        elif runtime is None:
            absent = "on the device"
        else:
            absent = find("runtimes", runtime).unavailable()
        name = row.path or f"{row.target} {row.format}"
        yield Candidate(name, bundle.path / name, runtime or "tensorrt", absent)


def _contract(model: Mapping[str, Any]) -> tuple[tuple[Input, ...], Preprocess | None]:
    """The source's inputs and preprocessing, as the manifest has them."""
    inputs = tuple(Input.restore(fields) for fields in model["inputs"])
    if model["preprocess"] is None:
        return inputs, None
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in model["preprocess"].items()
    }
    return inputs, Preprocess(**fields)


def _other_source(
    bundle: Bundle, model: Model, inputs: tuple[Input, ...], damaged: list[str]
) -> str:
    """Why a model is not the one that the bundle was made of, or ``""``.

    The bundle's reference holds inputs and what the source gave for them.
    """
    if "reference.npz" in damaged:
        return "reference.npz, which tells whether it is the same model, is damaged"
    forms = [[(i.name, i.sample_shape, i.dtype) for i in each] for each in (model.inputs, inputs)]
    if forms[0] != forms[1]:
        return f"{model.source} takes {forms[0]}, the bundle's source {forms[1]}"
    reference = bundle.path / "reference.npz"
    arrays, expected = load_reference(reference)
    batch = bundle.manifest.recipe["batch"]
    actual = _outputs(model, arrays, 1 if batch == "dynamic" else batch)
    if {n: v.shape for n, v in actual.items()} != {n: v.shape for n, v in expected.items()}:
        return f"{model.source} gives other outputs than the bundle's source did"
    tolerance = tolerance_for("fp32", is_discrete(reference))
    failure = tolerance.failure(compare([expected], [actual]))
    return f"{model.source} is not what the bundle was made of: {failure}" if failure else ""


def _outputs(model: Model, inputs: Arrays, size: int) -> Arrays:
    """The model's outputs for inputs batch first, ``size`` samples a call."""
    import numpy as np

    count = len(next(iter(inputs.values())))
    calls = [
        run_module(model.module, {n: v[i : i + size] for n, v in inputs.items()}, model.outputs)
        for i in range(0, count, size)
    ]
    return {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}


def _notes(bundle: Bundle, data: Any) -> tuple[str, ...]:
    calibrated = bundle.manifest.data.get("calibrated_on")
    if calibrated is None or not isinstance(data, str | Path):
        return ()
    if Path(data).expanduser().resolve() != Path(calibrated).expanduser().resolve():
        return ()
    return (f"{data} also holds the samples that set the INT8 scales: not an independent judge.",)


def _described(artifact: Path, data: Any) -> tuple[Input, ...]:
    """Inputs as prepared arrays show them, for an artifact whose model is not given."""
    from edgekit.data import arrays

    path = Path(data).expanduser() if isinstance(data, str | Path) else None
    if path is None or path.suffix not in (".npz", ".safetensors") or not path.is_file():
        raise EdgekitError(
            f"{artifact} does not say how {data} becomes its inputs.",
            "Only arrays by input name need no preparation.",
            "Pass --model MODEL, from which it was made, or data as .npz.",
        )
    found = arrays.read(path, ())
    return tuple(
        Input(name, (BATCH, *value.shape[1:]), str(value.dtype))
        for name, value in found.items()
        if name != arrays.LABELS
    )

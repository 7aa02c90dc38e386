"""Quantizing: one quantized artifact or scale table, and what hurts when a model is quantized."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from edgekit import files, single
from edgekit.errors import EdgekitError
from edgekit.find import find
from edgekit.latency import Ratio, Settings, paired, thread_choices
from edgekit.plot import Bar, bars
from edgekit.progress import stage
from edgekit.recipe import Recipe
from edgekit.source import stacked
from edgekit.targets import Target, load
from edgekit.targets.runtimes import runtime_for
from edgekit.work import Work

if TYPE_CHECKING:
    from edgekit.quantize.sensitivity import Damage

SCHEMA_VERSION = 1
#: Samples that rank modules; more change little.
SAMPLES = 16
RECIPE = "recipe.yaml"
_PATHS = ("checkpoint", "calibration", "evaluation", "scales")


@dataclass(frozen=True)
class Made:
    """One quantized artifact.

    Attributes:
        checked: what its check found.
        float_dtype: of its float counterpart.
        ratios: its latency against that, by number of threads; empty where it cannot run here.
    """

    checked: single.Checked
    float_dtype: str
    ratios: tuple[Ratio, ...]


@dataclass(frozen=True)
class Analysis:
    """Which modules hurt.

    Attributes:
        damages: one a module, worst first.
        suggested: modules that are better left in float.
        rule: how they were chosen.
        drift, drift_without: predicted with every module quantized, and without the suggested.
    """

    model: str
    precision: str
    effort: str
    data: str
    samples: int
    damages: tuple[Damage, ...]
    suggested: tuple[str, ...]
    rule: str
    drift: float
    drift_without: float
    schema_version: int = SCHEMA_VERSION


def quantized_recipe(recipe: Recipe) -> Recipe:
    """The recipe, in INT8 unless it names a quantized precision.

    Raises:
        EdgekitError: it names one that does not quantize.
    """
    if "precision" not in recipe.model_fields_set:
        return recipe.model_copy(update={"precision": "int8"})
    if recipe.scheme is None:
        raise EdgekitError(
            f"{recipe.precision} quantizes nothing.",
            "",
            "Ask for --precision int8, w8a16, w4a16, w4a8 or fp8; or use `edgekit convert`.",
        )
    return recipe


def scale_table(recipe: Recipe, out: Path) -> int:
    """Calibrate and write the scale table, with changed tensors beside it.

    Returns:
        How many sites it has.
    """
    made = Work(quantized_recipe(recipe)).quantize()
    with files.atomic(out) as room:
        made.save(room)
    return len(made.table.sites)


def artifact(recipe: Recipe, out: Path) -> Made:
    """One quantized artifact, checked, and where it runs here timed against its float one.

    Raises:
        EdgekitError: bad input, or no target for what only devices run.
        CheckFailed: it is out of tolerance; nothing is written.
    """
    recipe = quantized_recipe(recipe)
    if not recipe.targets and out.suffix == ".onnx":
        recipe = recipe.model_copy(update={"targets": ("cpu",)})
    target = only_target(recipe)
    work = Work(recipe)
    checked = single.convert(recipe, out, work)
    format = single.format_of(out)
    return Made(checked, target.float_dtype, _compared(work, target, format, out))


def only_target(recipe: Recipe) -> Target:
    """The recipe's one target.

    Raises:
        EdgekitError: it has none, or several.
    """
    if len(recipe.targets) != 1:
        found = f"these are {', '.join(recipe.targets)}" if recipe.targets else "none is given"
        raise EdgekitError(
            f"One target is needed; {found}.",
            "How a model is quantized, and how fast that is, depends on the device.",
            "Pass --target NAME once; `edgekit targets` lists them.",
        )
    target = load(recipe.targets[0])
    target.require(recipe.precision)
    return target


def runs_here(target: Target, format: str) -> str | None:
    """The runtime that can time such artifacts on this machine, or None."""
    runtime = runtime_for(target.runtime, format)
    return None if runtime is None or find("runtimes", runtime).untimed() else runtime


def settings_of(work: Work) -> Settings:
    """How the recipe wants latency measured, on the first judging samples."""
    recipe = work.recipe
    return Settings(work.batches[0], recipe.warmup, recipe.iterations, recipe.seconds)


def _compared(work: Work, target: Target, format: str, out: Path) -> tuple[Ratio, ...]:
    runtime = runs_here(target, format)
    if runtime is None:
        return ()
    with tempfile.TemporaryDirectory() as folder:
        counterpart = work.artifact(target, format, Path(folder), None)
        with stage(f"Comparing with {target.float_dtype}"):
            return tuple(
                paired(out, counterpart, runtime, settings_of(work), threads)
                for threads in thread_choices(runtime)
            )


def analyze(recipe: Recipe, out: Path) -> Analysis:
    """Rank modules by the damage that quantizing each alone does.

    Writes ``sensitivity.json``, ``sensitivity.svg`` and ``recipe.yaml``, which leaves the
    suggested modules in float, into the folder ``out``.

    Raises:
        EdgekitError: bad input.
    """
    recipe = quantized_recipe(recipe)
    found = examine(Work(recipe), [load(name) for name in recipe.targets])
    files.make_folder(out)
    exclude = (*recipe.exclude, *found.suggested)
    write_recipe(
        recipe.model_copy(update={"exclude": exclude}),
        out / RECIPE,
        f"Suggested by edgekit quantize --analyze: {found.rule}.",
    )
    files.write_text(out / "sensitivity.json", json.dumps(asdict(found), indent=1))
    files.write_text(out / "sensitivity.svg", _picture(found))
    return found


def examine(work: Work, targets: Sequence[Target]) -> Analysis:
    """The damage of each module that one of the targets (or, with none, any) quantizes."""
    from edgekit.quantize import sensitivity as s
    from edgekit.quantize.place import kept_float

    recipe = work.recipe
    quantized = work.quantize(rounding=False)
    kept = [set(kept_float(work.lower(target, quantized))) for target in targets]
    spared = set.intersection(*kept) if kept else set()
    few = work.datasets[0].take(min(SAMPLES, len(work.datasets[0])), recipe.seed)
    size = 1 if recipe.batch == "dynamic" else recipe.batch
    batches = list(stacked(few, size, size))
    damages = s.sensitivity(
        quantized.applied(work.graph), quantized.table, batches, few.labels, spared
    )
    suggested = s.suggest(damages)
    return Analysis(
        model=recipe.model,
        precision=recipe.precision,
        effort=quantized.table.effort,
        data=few.origin,
        samples=len(batches) * size,
        damages=damages,
        suggested=suggested,
        rule=s.RULE,
        drift=s.together(damages),
        drift_without=s.together([d for d in damages if d.module not in suggested]),
    )


def _picture(found: Analysis) -> str:
    rows = [Bar(d.module, d.drift, d.module in found.suggested) for d in found.damages]
    title = f"{found.model}: damage of each module alone in {found.precision}"
    unit = "relative error of the outputs"
    return bars(title, unit, rows, "suggested to stay in float" if found.suggested else "")


def write_recipe(recipe: Recipe, path: Path, note: str) -> None:
    """Write a recipe that means the same wherever it is read from on this machine."""
    fields = recipe.model_dump(mode="json", exclude_defaults=True)
    for name in _PATHS:
        if fields.get(name) is not None:
            fields[name] = str(Path(fields[name]).absolute())
    family, _, rest = recipe.model.partition("/")
    if Path(recipe.model).is_file():
        fields["model"] = str(Path(recipe.model).absolute())
    elif rest and Path(rest).is_dir():
        fields["model"] = f"{family}/{Path(rest).absolute()}"
    text: Any = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    files.write_text(path, f"# {note}\n{text}")

"""The command that quantizes: one artifact or scale table, what hurts, the best mixture."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli import show
from edgekit.cli.options import (
    Batch,
    BatchSize,
    Calibration,
    Checkpoint,
    Context,
    Effort,
    Evaluation,
    EvaluationSamples,
    Exclude,
    Granularity,
    Inputs,
    Iterations,
    Json,
    Method,
    Mode,
    Model,
    Partial,
    Precision,
    Random,
    RandomData,
    Samples,
    Scales,
    Seconds,
    Seed,
    Set,
    Targets,
    Warmup,
    recipe_from,
)
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.quantize.search import Point
    from edgekit.recipe import Recipe
    from edgekit.tuning.choice import Found, Goal
    from edgekit.tuning.quantizing import Analysis, Made

#: Rows of a table in the terminal; the files hold all.
ROWS = 20
_BAR = 24


def quantize(
    model: Model,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help=".onnx, .plan, .mlpackage; .json: scales only; else a folder."
        ),
    ],
    analyze: Annotated[
        bool, typer.Option("--analyze", help="Rank modules by the damage that each does.")
    ] = False,
    accuracy_drop: Annotated[
        float | None, typer.Option(help="Search: lose at most so many points of top-1.", min=0)
    ] = None,
    max_drift: Annotated[
        float | None, typer.Option(help="Search: at most this relative error, no labels.", min=0)
    ] = None,
    latency: Annotated[
        float | None, typer.Option(help="Search: milliseconds a call [the fewest].", min=0)
    ] = None,
    size: Annotated[
        float | None, typer.Option(help="Search: megabytes of the artifact.", min=0)
    ] = None,
    target: Targets = None,
    precision: Precision = None,
    checkpoint: Checkpoint = None,
    random_weights: Random = None,
    allow_partial: Partial = None,
    set_: Set = None,
    input_: Inputs = None,
    batch: Batch = None,
    mode: Mode = None,
    context: Context = None,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    samples: Samples = None,
    evaluation_samples: EvaluationSamples = None,
    batch_size: BatchSize = None,
    method: Method = None,
    effort: Effort = None,
    granularity: Granularity = None,
    seed: Seed = None,
    random_calibration: RandomData = None,
    scales: Scales = None,
    exclude: Exclude = None,
    warmup: Warmup = None,
    iterations: Iterations = None,
    seconds: Seconds = None,
    as_json: Json = False,
) -> None:
    """Quantize, and time it against float; or find what hurts, or which modules to quantize."""
    values = locals()
    recipe = recipe_from(values)
    goal = _goal(values)
    if analyze and goal is not None:
        raise EdgekitError("--analyze and a search are two things.", "", "Ask for one of them.")
    if analyze or goal is not None:
        _check_folder(output)
    if analyze:
        _analyze(recipe, output, as_json)
    elif goal is not None:
        _search(recipe, goal, output, as_json)
    else:
        _make(recipe, output, as_json)


def _goal(values: dict[str, Any]) -> Goal | None:
    """What to search for; None if nothing of it was asked."""
    from edgekit.tuning.choice import Goal

    drop, drift = values["accuracy_drop"], values["max_drift"]
    latency, size = values["latency"], values["size"]
    if all(value is None for value in (drop, drift, latency, size)):
        return None
    return Goal(drop, drift, latency, size)


def _check_folder(output: Path) -> None:
    from edgekit.find import find, names

    suffixes = {Path(find("converters", name).NAME).suffix for name in names("converters")}
    if output.suffix in {*suffixes, ".json"} - {""} or output.is_file():
        raise EdgekitError(
            f"{output} is to be a folder.",
            "An analysis or a search writes several files.",
            "Pass -o FOLDER; then build the recipe.yaml in it.",
        )


def _make(recipe: Recipe, output: Path, as_json: bool) -> None:
    from edgekit.tuning import quantizing

    if output.suffix == "":
        raise EdgekitError(
            f"{output} does not say what to make.",
            "A folder is the result of --analyze, or of a search with --accuracy-drop.",
            "Pass one of these, or -o with .onnx, .plan, .mlpackage or .json; "
            "`edgekit build` makes bundles.",
        )
    if output.suffix == ".json":
        typer.echo(f"{output}: scales of {quantizing.scale_table(recipe, output)} tensors")
        return
    made = quantizing.artifact(recipe, output)
    if as_json:
        show.dump(asdict(made))
        return
    show.checks([made.checked])
    for line in _compared(made):
        typer.echo(line)


def _compared(made: Made) -> list[str]:
    """How fast an artifact is, a line a number of threads."""
    from edgekit.table import against_float

    if not made.ratios:
        return ["It cannot be timed here: whether it is faster than float is not known."]
    return [
        f"{ratio.first_ms:.2f} ms{ratio.on_threads}, "
        + against_float({**ratio.as_dict(), "float": made.float_dtype})
        + f" (95% interval {ratio.low:.2f} to {ratio.high:.2f})"
        for ratio in made.ratios
    ]


def _analyze(recipe: Recipe, output: Path, as_json: bool) -> None:
    from edgekit import table
    from edgekit.tuning import quantizing

    found = quantizing.analyze(recipe, output)
    if as_json:
        show.dump(asdict(found))
        return
    columns = ("module", "drift alone", "", "input dB", "weight dB", "output dB", "same class")
    title = f"{found.model} in {found.precision}, each module alone, on {found.samples} samples"
    table.show(table.plain_table(title, columns, _damage_rows(found)))
    if len(found.damages) > ROWS:
        typer.echo(f"{len(found.damages) - ROWS} more are in {output / 'sensitivity.json'}.")
    for line in _suggestion(found, output):
        typer.echo(line)


def _damage_rows(found: Analysis) -> list[tuple[str, ...]]:
    largest = found.damages[0].drift or 1.0
    return [
        (
            d.module,
            f"{d.drift:.5f}",
            "█" * max(1, round(_BAR * d.drift / largest)),
            "" if d.sqnr_input is None else f"{d.sqnr_input:.1f}",
            f"{d.sqnr_weight:.1f}",
            f"{d.sqnr_output:.1f}",
            "" if d.agreement is None else f"{d.agreement:.0%}",
        )
        for d in found.damages[:ROWS]
    ]


def _suggestion(found: Analysis, output: Path) -> list[str]:
    if not found.suggested:
        return [
            f"No module stands out: {output / 'recipe.yaml'} quantizes all.",
            f"Rule: {found.rule}.",
        ]
    return [
        f"Leave in float: {', '.join(found.suggested)}.",
        f"Predicted drift {found.drift:.4f} becomes {found.drift_without:.4f}. Rule: {found.rule}.",
        f"edgekit build {output / 'recipe.yaml'} does so.",
    ]


def _search(recipe: Recipe, goal: Goal, output: Path, as_json: bool) -> None:
    from edgekit import table
    from edgekit.tuning import mixing

    found = mixing.search(recipe, goal, output)
    if as_json:
        show.dump(asdict(found))
        return
    columns = ("modules", "drift", "ms", "MB", "next", "tried")
    title = f"{found.model} on {found.target}: drift and MB predicted, ms {found.costs.source}"
    table.show(table.plain_table(title, columns, _front_rows(found)))
    if found.final is not None:
        typer.echo(f"Built and judged on {found.judged_samples} samples: {found.final}.")
    if found.sizes_mb is not None:
        whole, mixed = found.sizes_mb
        typer.echo(f"{whole:.2f} MB in {found.float_dtype}, {mixed:.2f} MB in this choice.")
    typer.echo(found.verdict)
    typer.echo(f"edgekit build {output / 'recipe.yaml'} makes it.")


def _front_rows(found: Found) -> list[tuple[str, ...]]:
    """Both ends, what was tried, and some between."""
    tried = {trial.point: trial for trial in found.trials}
    last = len(found.front) - 1
    spaced = {round(step * last / 8) for step in range(9)}
    shown = sorted({0, last, *tried, *spaced})
    return [
        _front_row(found, index, found.front[index], str(tried.get(index, ""))) for index in shown
    ]


def _front_row(found: Found, index: int, point: Point, tried: str) -> tuple[str, ...]:
    text = tried.partition(": ")[2]
    after = found.front[index + 1].modules[-1] if index + 1 < len(found.front) else ""
    return (
        f"{len(point.modules)}{' chosen' if index == found.chosen else ''}",
        f"{point.drift:.4f}",
        f"{point.milliseconds:.3g}",
        f"{point.megabytes:.2f}",
        after,
        text,
    )

"""The command that builds a grid of models, precisions, targets and batches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli import show
from edgekit.cli.options import (
    Calibration,
    Checkpoint,
    Effort,
    Evaluation,
    EvaluationSamples,
    Exclude,
    Inputs,
    Iterations,
    Json,
    Method,
    Mode,
    Partial,
    Passes,
    Random,
    RandomData,
    Samples,
    Seconds,
    Seed,
    Set,
    Targets,
    Warmup,
    recipe_fields,
)
from edgekit.errors import CheckFailed, EdgekitError

if TYPE_CHECKING:
    from edgekit.sweeps import Grid, Result


def sweep(
    models: Annotated[list[str], typer.Argument(help="Models, or one GRID.yaml.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The sweep's folder.")],
    precision: Annotated[list[str] | None, typer.Option(help="Of artifacts; repeat.")] = None,
    target: Targets = None,
    batch: Annotated[
        list[str] | None, typer.Option(help="Samples a call, or 'dynamic'; repeat.")
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", help="Cells at once on this machine.", min=1)
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(help="Use a Ray cluster: HOST:6379, or 'auto' for the one that runs here."),
    ] = None,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for a device that left the cluster.", min=0)
    ] = 600.0,
    accuracy_drop: Annotated[
        float | None,
        typer.Option(help="Mark the fastest that lost at most so many points of top-1.", min=0),
    ] = None,
    checkpoint: Checkpoint = None,
    random_weights: Random = None,
    allow_partial: Partial = None,
    set_: Set = None,
    input_: Inputs = None,
    mode: Mode = None,
    pass_: Passes = None,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    samples: Samples = None,
    evaluation_samples: EvaluationSamples = None,
    method: Method = None,
    effort: Effort = None,
    seed: Seed = None,
    random_calibration: RandomData = None,
    exclude: Exclude = None,
    warmup: Warmup = None,
    iterations: Iterations = None,
    seconds: Seconds = None,
    as_json: Json = False,
) -> None:
    """Build, check and measure every cell of a grid; each result is kept as it comes."""
    from edgekit import sweeps

    grid = _grid(locals())
    try:
        results = sweeps.sweep(grid, output, jobs, ray, wait)
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command goes on where this one stopped.", err=True)
        raise typer.Exit(130) from None
    _show(grid, results, output, accuracy_drop, as_json)
    failed = [row for row in results if not row.ok]
    if failed:
        raise CheckFailed(
            f"{len(failed)} of {len(results)} cells of {output} failed.",
            "\n".join(f"{row.name}: {row.status}" for row in failed),
            "The same command tries them again.",
        )


def _grid(values: dict[str, Any]) -> Grid:
    """The grid that the flags describe; flags replace the fields of a grid's file."""
    from edgekit.sweeps import Grid

    axes = {"precision": "precisions", "target": "targets", "batch": "batches"}
    fields = recipe_fields({name: v for name, v in values.items() if name not in axes})
    fields |= {axis: values[name] for name, axis in axes.items() if values[name]}
    if "batches" in fields:
        fields["batches"] = [int(n) if n.isdigit() else n for n in fields["batches"]]
    models = values["models"]
    files = [name for name in models if name.endswith((".yaml", ".yml"))]
    if not files:
        return Grid.check({**fields, "models": models}, "the command")
    if len(models) > 1:
        raise EdgekitError(
            f"{files[0]} is a grid, and stands beside {len(models) - 1} more.",
            "A grid's file names its models.",
            "Give the file alone, or models alone.",
        )
    return Grid.read(Path(files[0]), fields)


def _show(
    grid: Grid, results: list[Result], output: Path, accuracy_drop: float | None, as_json: bool
) -> None:
    from edgekit import table
    from edgekit.sweeps import ranking

    marks = ranking.marks(results, accuracy_drop)
    if as_json:
        rows = [{**r.model_dump(mode="json"), "mark": marks.get(r.name, "")} for r in results]
        show.dump({"schema_version": 1, "grid": grid.model_dump(mode="json"), "results": rows})
        return
    columns = "model precision target batch status size drift top-1 latency samples/s mark"
    cells = [_cells(row, marks.get(row.name, "")) for row in results]
    table.show(table.plain_table(f"Sweep in {output}", tuple(columns.split()), cells))
    if any(row.kind == "predicted" for row in results):
        typer.echo("Predicted: no such device was here; in brackets, where 90% are expected.")
    if marks:
        typer.echo(
            "pareto: of its target and batch, no other is as fast and as accurate, and better in "
            "one." + _best_text(accuracy_drop)
        )
    for row in results:
        if row.kind == "measured" and row.detail:
            typer.echo(f"{row.name}: {row.detail}")
    typer.echo(f"Rows: {output}/results.csv. Bundles: {output}/bundles.")


def _best_text(accuracy_drop: float | None) -> str:
    if accuracy_drop is None:
        return ""
    return f" best: the fastest that lost at most {accuracy_drop:g} points of top-1."


def _cells(row: Result, mark: str) -> tuple[str, ...]:
    from rich.markup import escape

    from edgekit import table

    drift = "" if row.drift is None else table.drift_text(row.drift)
    if row.drift_of and row.artifact and not row.artifact.endswith(row.drift_of):
        drift += f"\n(of {row.drift_of})"
    return (
        escape(row.model),
        row.precision,
        row.target,
        str(row.batch),
        escape(row.status),
        "" if row.size is None else f"{row.size / 1e6:.2f} MB",
        drift,
        "" if row.top1 is None else f"{row.top1:.2%}",
        _latency(row),
        "" if row.throughput is None else f"{row.throughput:.0f}",
        mark,
    )


def _latency(row: Result) -> str:
    if row.milliseconds is None:
        return f"not predicted: {row.not_predicted}" if row.not_predicted else ""
    text = f"{row.milliseconds:.2f} ms"
    if row.predicted is not None and row.kind == "predicted":
        low, high = row.predicted["low"], row.predicted["high"]
        return f"{text} predicted\n({low:.2f} to {high:.2f})"
    threads = (row.best or {}).get("threads")
    return text if threads is None else f"{text} ({threads} thread{'s' if threads > 1 else ''})"

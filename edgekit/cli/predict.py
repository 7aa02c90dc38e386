"""The command that predicts latency on devices that are not here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli import show
from edgekit.cli.options import (
    Batch,
    Checkpoint,
    Exclude,
    Inputs,
    Json,
    Model,
    Partial,
    Precision,
    Random,
    Set,
    Targets,
    recipe_from,
)

if TYPE_CHECKING:
    from edgekit.targets.prediction import GroupTime, Prediction

#: Operators that ``--explain`` shows.
TOP = 12
EXPLAINED = ("class", "module", "times", "dtype", "ms", "share", "waits for", "GFLOP", "MB")


def predict(
    model: Model,
    target: Targets = None,
    precision: Precision = None,
    batch: Batch = None,
    all_targets: Annotated[
        bool, typer.Option("--all-targets", help="On every device that runs the precision.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what takes longest, and what it waits for.")
    ] = False,
    threads: Annotated[int, typer.Option(help="Of a CPU.", min=1)] = 1,
    checkpoint: Checkpoint = None,
    random_weights: Random = None,
    allow_partial: Partial = None,
    set_: Set = None,
    input_: Inputs = None,
    exclude: Exclude = None,
    as_json: Json = False,
) -> None:
    """Predict latency and memory on a device that isn't here, with an error bar."""
    from edgekit import predicting

    recipe = recipe_from(locals())
    absent: dict[str, str] = {}
    if all_targets:
        found, absent = predicting.everywhere(recipe, threads=threads)
    else:
        found = predicting.predict(recipe, threads=threads)
    if as_json:
        show.dump({"predicted": [as_dict(each) for each in found], "not_predicted": absent})
        return
    _show(found, absent, explain)


def as_dict(prediction: Prediction) -> dict[str, Any]:
    """For JSON."""
    from dataclasses import asdict

    basis = asdict(prediction.basis)
    basis["spread"] = prediction.basis.spread.model_dump()
    fields = asdict(prediction)
    shares = {name: round(value, 4) for name, value in prediction.shares.items()}
    more = {"label": "predicted", "memory_mb": prediction.memory_mb, "waits_for": shares}
    return {**fields, "basis": basis, **more}


def _show(found: list[Prediction], absent: dict[str, str], explain: bool) -> None:
    from edgekit import table

    rows = [_row(each) for each in found]
    columns = ("target", "predicted ms", "90% interval", "memory MB", "waits for")
    if found:
        first = found[0]
        title = f"Predicted: {first.source} in {first.precision}, batch {first.batch}"
        table.show(table.plain_table(title, columns, tuple(rows)))
    if explain:
        for each in found:
            title = f"{each.target}: what takes longest, predicted"
            table.show(table.plain_table(title, EXPLAINED, _top(each)))
    for text in dict.fromkeys(each.basis.text for each in found):
        typer.echo(text[0].upper() + text[1:] + ".")
    for note in dict.fromkeys(note for each in found for note in each.basis.notes):
        names = [each.target for each in found if note in each.basis.notes]
        typer.echo(f"{', '.join(names)}: {note}.")
    typer.echo(
        "Memory is predicted too: weights, what is alive at once, inputs and outputs, and in "
        "TensorRT its workspace; not what the runtime and its driver take."
    )
    for name, why in absent.items():
        typer.echo(f"{name}: not predicted. {why}")


def _row(p: Prediction) -> tuple[str, ...]:
    waits = ", ".join(
        f"{name} {share:.0%}"
        for name, share in sorted(p.shares.items(), key=lambda pair: -pair[1])
        if share >= 0.005
    )
    interval = f"{_ms(p.low)} to {_ms(p.high)}"
    return (p.target, _ms(p.milliseconds), interval, f"{p.memory_mb:.0f}", waits)


def _top(p: Prediction) -> list[tuple[str, ...]]:
    """What takes longest; equal layers of a stack are one row."""
    alike: dict[tuple[str, ...], list[GroupTime]] = {}
    for g in p.groups:
        name = f"{g.kind} ({g.operator})" if g.operator != g.kind else g.kind
        path = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", g.module)
        alike.setdefault((name, path, g.dtype, g.bound), []).append(g)
    longest = sorted(alike.items(), key=lambda pair: -_sum(pair[1], "milliseconds"))[:TOP]
    return [
        (
            name,
            path,
            str(len(members)),
            dtype,
            _ms(_sum(members, "milliseconds")),
            f"{_sum(members, 'milliseconds') / p.milliseconds:.1%}",
            bound,
            f"{_sum(members, 'flops') / 1e9:.3f}",
            f"{_sum(members, 'bytes') / 1e6:.2f}",
        )
        for (name, path, dtype, bound), members in longest
    ]


def _sum(groups: list[GroupTime], name: str) -> float:
    return sum(float(getattr(group, name)) for group in groups)


def _ms(value: float) -> str:
    """Three digits, as the error bar allows no more."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"

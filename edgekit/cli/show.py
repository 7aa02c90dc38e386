"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.bundle import Bundle
    from edgekit.evaluation.scores import Report, Score
    from edgekit.quantize.spiking.report import Spikes
    from edgekit.single import Checked


def dump(value: Any) -> None:
    """Print JSON."""
    typer.echo(json.dumps(value, indent=1, default=str))


def save(value: Any, path: Path) -> None:
    """Write JSON to a file."""
    from edgekit import files

    files.write_text(path, json.dumps(value, indent=1, default=str))


def fields(fields: dict[str, Any], as_json: bool) -> None:
    """Print names and values, one a line."""
    from edgekit import table

    if as_json:
        dump(fields)
        return
    rows = [(name, _text(value)) for name, value in fields.items() if value not in (None, "", {})]
    table.show(table.plain_table(str(fields.get("source", "")), ("", ""), rows))


def _text(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return "\n".join(str(item) for item in value)
    if isinstance(value, dict):
        return "\n".join(f"{name}: {item}" for name, item in value.items())
    return str(value)


def bundle(bundle: Bundle) -> None:
    """Print what a bundle holds and what was measured."""
    from edgekit import table

    table.show(table.bundle_table(bundle))
    if bundle.manifest.model.get("stages"):
        stages("Compressed, in PyTorch", bundle.manifest.model["stages"])
    if bundle.manifest.baseline:
        table.show(table.latency_table("The source here, ms", bundle.manifest.baseline))
    typer.echo(f"Bundle: {bundle.path}")


def stages(title: str, stages: list[dict[str, Any]]) -> None:
    """Print what passes made of a model, one row a pass."""
    from edgekit import table

    table.show(table.stages_table(title, stages))


def spikes(found: Spikes, latency: list[dict[str, Any]]) -> None:
    """Print what was counted of a spiking model, what is estimated, and what was measured."""
    from edgekit import table
    from edgekit.quantize.spiking.report import AC_PJ, CONSTANTS, MAC_PJ

    rows = [
        (
            layer.name,
            layer.kind,
            layer.unit or "real numbers",
            str(layer.steps or ""),
            "" if layer.rate is None else f"{layer.rate:.3f}",
            f"{layer.macs:,.0f}",
            f"{layer.acs:,.0f}" if layer.unit else "",
        )
        for layer in found.layers
    ]
    columns = ("layer", "kind", "fed by", "T", "spike rate", "MACs", "ACs instead")
    title = f"Spikes, the mean of {found.samples} samples"
    table.show(table.plain_table(title, columns, rows))
    typer.echo(
        f"Of {found.macs:,.0f} MACs a sample {found.analog:,.0f} stay; spikes make the others "
        f"{found.acs:,.0f} ACs (synaptic operations)."
    )
    typer.echo(
        f"Energy, an estimate: {found.energy_uj:.3g} uJ a sample; the same layers in float "
        f"{found.float_uj:.3g} uJ, an estimate. {MAC_PJ} pJ a MAC, {AC_PJ} pJ an AC ({CONSTANTS}); "
        "without memory traffic and the neurons themselves."
    )
    if found.uncounted:
        typer.echo(f"In neither are {', '.join(found.uncounted)}, which are not counted.")
    forms = " and ".join(found.forms)
    table.show(table.latency_table(f"Measured here: ONNX in fp32, {forms}, ms", latency))
    typer.echo("The engine computes all of it as floats: it saves nothing where there is no spike.")


def checks(checks: list[Checked]) -> None:
    """Print what each check found."""
    from edgekit import table

    rows = [
        (c.artifact, c.status, "" if c.drift is None else table.drift_text(c.drift.as_dict()))
        for c in checks
    ]
    table.show(table.plain_table("Checks", ("artifact", "status", "drift"), rows))


def report(report: Report) -> None:
    """Print how the source and each artifact scored, and what is noise."""
    from edgekit import table

    names = list(dict.fromkeys(name for row in report.rows for name in row.scores))
    rows = [
        (row.artifact, row.runtime, row.status, *(_cell(row.scores.get(name)) for name in names))
        for row in report.rows
    ]
    title = f"{report.subject} on {report.samples} samples of {report.data}"
    table.show(table.plain_table(title, ("artifact", "runtime", "status", *names), rows))
    if any(score.interval for row in report.rows for score in row.scores.values()):
        typer.echo(f"Under a score: points from the source. In brackets: {report.intervals}.")
    for note in report.notes:
        typer.echo(note)


def _cell(score: Score | None) -> str:
    """The value with its interval, and under it the difference from the source."""
    if score is None:
        return ""
    text = f"{score.value:.2%}" if score.unit == "%" else f"{score.value:.6g}"
    if score.interval is not None:
        text += " [{:.1f}, {:.1f}]".format(*(100 * end for end in score.interval))
    if score.difference is None:
        return text
    text += f"\n{score.difference:+z.2f}"
    if score.difference_interval is not None:
        text += " [{:+.1f}, {:+.1f}]".format(*score.difference_interval)
    return f"{text} noise" if score.noise else text

"""Table: results as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from edgekit.bundle import Bundle, Row


def bundle_table(bundle: Bundle) -> Table:
    """One row an artifact: target, artifact, status, size, drift, top-1, latency."""
    recipe, model = bundle.manifest.recipe, bundle.manifest.model
    title = f"{recipe['model']} in {recipe['precision']}"
    stages = model.get("stages") or [model]
    if stages[0]["top1"] is not None:
        judged = bundle.manifest.data["judged_samples"]
        compressed = f", compressed {model['top1']:.2%}" if len(stages) > 1 else ""
        source = f"source {stages[0]['top1']:.2%} top-1"
        title += f": {source}{compressed} on {judged} images"
    table = _table(title, "target", "artifact", "status", "size", "drift", "top-1", "latency")
    for row in bundle.manifest.rows:
        style = "" if row.ok else "red"
        table.add_row(*_cells(row), style=style)
    return table


def latency_table(title: str, entries: list[dict[str, Any]]) -> Table:
    """One row a measurement, in milliseconds."""
    columns = ("avg", "p50", "p90", "p95", "p99", "min", "max", "std")
    table = _table(title, "runtime", "threads", *columns, "samples/s", "peak MB")
    for entry in entries:
        found = entry.get("latency_ms")
        name = f"{entry['runtime']} {entry.get('phase', '')}".rstrip()
        if found is None:
            table.add_row(name, str(entry.get("threads") or ""), entry["status"])
            continue
        figures = [f"{found[name]:.2f}" for name in columns]
        memory = entry["peak_memory_mb"]
        table.add_row(
            name,
            str(entry.get("threads") or ""),
            *figures,
            f"{found['throughput']:.0f}",
            "unknown" if memory is None else f"{memory:.0f}",
        )
    return table


def stages_table(title: str, stages: list[dict[str, Any]]) -> Table:
    """One row a pass: what is left of parameters and operations, and what it costs."""
    columns = ("parameters", "operations", "top-1", "output error", "seconds")
    table = _table(title, "pass", *columns)
    first = stages[0]
    for stage in stages:
        top1 = stage["top1"]
        table.add_row(
            escape(stage["name"]),
            _share(stage["parameters"], first["parameters"]),
            _share(stage["operations"], first["operations"]),
            "" if top1 is None else f"{top1:.2%}",
            f"{stage['error']:.4f}",
            f"{stage['seconds']:.0f}",
        )
    return table


def _share(count: int, whole: int) -> str:
    return f"{count:,} ({count / whole:.0%})" if whole else f"{count:,}"


def plain_table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    """A table of text, shown as it is: ``[cuda]`` is no mark-up."""
    table = _table(title, *columns)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def show(table: RenderableType) -> None:
    """Print tables on stdout; wide enough for every column where stdout is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _cells(row: Row) -> tuple[str, ...]:
    drift = row.drift
    size = "" if row.size is None else f"{row.size / 1e6:.2f} MB"
    return (
        row.target,
        row.path.rpartition("/")[2] if row.path else row.format,
        _status(row),
        size,
        "" if drift is None else drift_text(drift),
        "" if row.top1 is None else f"{row.top1:.2%}",
        "\n".join(_brief(entry) for entry in row.latency),
    )


def _status(row: Row) -> str:
    """The status, and how many layers are quantized."""
    if "quantized_modules" not in row.details:
        return row.status
    count, floats = row.details["quantized_modules"], len(row.details["kept_float"])
    return f"{row.status}\n{count} of {count + floats} layers quantized"


def drift_text(drift: dict[str, Any]) -> str:
    """Cosine and largest error."""
    return f"cos {drift['cosine']:.5f}, max {drift['max_abs']:.1e}"


def _brief(entry: dict[str, Any]) -> str:
    found = entry.get("latency_ms")
    if found is None:
        return str(entry["status"])
    phase = f"{entry['phase']}: " if "phase" in entry else ""
    threads = entry.get("threads")
    if threads is None:
        return "\n".join([f"{phase}{found['p50']:.2f} ms ({entry['runtime']})", *_on_device(entry)])
    text = f"{phase}{found['p50']:.2f} ms ({threads} thread{'s' if threads > 1 else ''})"
    return f"{text}, {against_float(entry['to_float'])}" if "to_float" in entry else text


def _on_device(entry: dict[str, Any]) -> list[str]:
    """What a device told beside the latency: the GPU's part, energy, and why to doubt it."""
    told = []
    if entry.get("device_ms"):
        told.append(f"  {entry['device_ms']['compute']:.2f} ms of it the GPU computes")
    if (entry.get("energy") or {}).get("meter"):
        energy = entry["energy"]
        millijoules = f"{energy['joules_per_inference'] * 1e3:.3g} mJ a sample"
        told.append(f"  {millijoules}, {energy['watts']:.3g} W ({energy['meter']})")
    return [*told, *(f"  doubtful: {doubt}" for doubt in entry.get("doubts", ()))]


def against_float(compared: dict[str, Any]) -> str:
    """How a quantized artifact compares with its float counterpart; slower is said in words."""
    text = f"{compared['ratio']:.2f} of {compared['float']}"
    return f"{text}: slower than {compared['float']}" if compared["ratio"] > 1 else text

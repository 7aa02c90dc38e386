"""Tables: reports as a person reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from edgekit.latency.reports import Report, name_of, sizes_of

Row = Mapping[str, Any]
#: Rows of a profile that are shown; the report has all.
PROFILE_ROWS = 12


def report_table(report: Report) -> Group:
    """The report of ``bench`` or ``bench_paired``, what to doubt in it, and where it was made."""
    paired = report["mode"] == "paired"
    parts: list[Any] = [_paired(report) if paired else _latencies(report)]
    rows = report["results"]
    parts += [_profile(row) for row in rows if row.get("profile")]
    parts += [Text(line, style="yellow") for line in _doubts(rows)]
    parts += [Text(line) for line in _notes(report)]
    return Group(*parts)


def _latencies(report: Report) -> Table:
    """One row a measurement; columns that would be empty are left out."""
    rows = report["results"]
    cells = [_cells(row, report["mode"]) for row in rows]
    names = dict.fromkeys(name for row in cells for name in row)
    table = Table(title=escape(_title(report)), title_justify="left", title_style="bold")
    for name in names:
        right = name not in ("artifact", "runtime", "inputs", "phase", "status")
        table.add_column(name, overflow="fold", justify="right" if right else "left")
    for row, texts in zip(rows, cells, strict=True):
        style = "" if row["status"] == "measured" else "dim"
        style = "bold" if row.get("best") else style
        table.add_row(*(escape(texts.get(name, "")) for name in names), style=style)
    return table


def _title(report: Report) -> str:
    kind = {
        "latency": "latency in ms",
        "single-stream": "single stream, latency in ms",
        "throughput": "throughput",
    }[report["mode"]]
    return f"{report['subject']}: {kind}"


def _cells(row: Row, mode: str) -> dict[str, str]:
    """A row's texts by column."""
    cells = {"artifact": str(row["artifact"]), "runtime": str(row["runtime"])}
    if row["threads"] is not None:
        cells["threads"] = str(row["threads"])
    if row["phase"]:
        cells["phase"] = row["phase"]
    if row["status"] != "measured":
        return {**cells, "status": row["status"]}
    if mode == "throughput":
        cells["in flight"] = str(row["streams"])
    latency, figure, cold = row["latency_ms"], row["figure"], row["cold"]
    cells |= {"inputs": sizes_of(row), "load": _ms(cold["load_ms"]), "first": _ms(cold["first_ms"])}
    middle = _between(figure) if figure["name"] == "p50_ms" else _ms(latency["p50"])
    cells |= {"p50 [95%]" if mode == "latency" else "p50": middle}
    if mode == "single-stream":
        cells |= {"p90 [95%]": _between(figure), "queries": f"{row['iterations']:,}"}
    else:
        cells["p90"] = _ms(latency["p90"])
    cells |= {"p99": _ms(latency["p99"]), "max": _ms(latency["max"])}
    rate = _rate(row["throughput"])
    if mode == "throughput":
        rate = f"{rate} [{_rate(figure['low'])}, {_rate(figure['high'])}]"
    cells["samples/s"] = rate + (" best" if row.get("best") else "")
    if row["device_ms"]:
        cells |= {f"{n.replace('_', ' ')}": _ms(value) for n, value in row["device_ms"].items()}
    cells["peak MB"] = _mb(row["peak_memory_mb"])
    if row["device_memory_mb"] is not None:
        cells["device MB"] = _mb(row["device_memory_mb"])
    energy = row["energy"]
    if energy["meter"] is not None:
        cells["mJ a sample"] = f"{energy['joules_per_inference'] * 1e3:.3g}"
    return cells


def _paired(report: Report) -> Table:
    title = f"{report['subject']} against {report['other']}, in turns"
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for name in ("artifact", "runtime", "threads", "inputs", "ms", "against, ms",
                 "ratio [95%]", "verdict", "loads"):  # fmt: skip
        table.add_column(name, overflow="fold")
    for row in report["results"]:
        found = row.get("paired")
        first = (str(row["artifact"]), str(row["runtime"]), str(row["threads"] or ""))
        if found is None:
            table.add_row(*map(escape, first), "", "", "", "", row["status"], style="dim")
            continue
        ratio = f"{found['ratio']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
        style = {"faster": "green", "slower": "red"}.get(found["verdict"], "")
        table.add_row(
            *map(escape, first),
            sizes_of(row),
            _ms(found["first_ms"]),
            _ms(found["second_ms"]),
            ratio,
            Text(found["verdict"], style=style),
            str(found["loads"]),
        )
    return table


def _profile(row: Row) -> Table:
    """Shares of the time, by class of operator and by module, the largest first."""
    found = row["profile"]
    title = f"Where {name_of(row)} spends its time"
    if found["covered"]:
        title += f" (layers explain {found['covered']:.0%} of a call)"
    table = Table(title=escape(title), title_justify="left", title_style="bold", min_width=100)
    for name in ("class", "share", "ms", "module", "share", "ms"):
        table.add_column(name, justify="left" if name in ("class", "module") else "right")
    sides = [_shares(found[kind]) for kind in ("by_class", "by_module")]
    for index in range(min(PROFILE_ROWS, max(len(side) for side in sides))):
        cells = [side[index] if index < len(side) else ("", "", "") for side in sides]
        table.add_row(*(escape(text) for cell in cells for text in cell))
    return table


def _shares(groups: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Of groups that take half a percent and more."""
    return [
        (group["name"] or "(the model itself)", f"{group['share']:.0%}", _ms(group["milliseconds"]))
        for group in groups
        if group["share"] >= 0.005
    ]


def comparison_table(found: Report) -> Group:
    """Two reports, row by row."""
    title = f"{found['subjects'][0]} before, {found['subjects'][1]} after"
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for name in ("measurement", "before", "after", "after / before [95%]", "verdict"):
        table.add_column(name, overflow="fold")
    for row in found["rows"]:
        unit = "samples/s" if row["figure"] == "samples_s" else row["figure"].replace("_", " ")
        before, after = (f"{row[when]:.3g} {unit}" for when in ("before", "after"))
        ratio = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        style = {"faster": "green", "slower": "red"}.get(row["verdict"], "")
        verdict = Text(row["verdict"], style=style)
        table.add_row(escape(name_of(row)), before, after, ratio, verdict)
    lines = [f"{name}: {old} before, {new} after" for name, (old, new) in
             found["environment"].items()]  # fmt: skip
    lines += [f"Only {when}: {name}" for when, names in found["unmatched"].items()
              for name in names]  # fmt: skip
    doubts = [f"{name_of(row)}: {text}" for row in found["rows"] for text in row["doubts"]]
    warnings = [Text(line, style="yellow") for line in doubts]
    return Group(table, *warnings, *(Text(line) for line in [*lines, *found["notes"]]))


def _doubts(rows: Iterable[Row]) -> list[str]:
    """Each reason once, with how many of the rows have it."""
    rows = [row for row in rows if row["status"] == "measured"]
    counts: dict[str, list[str]] = {}
    for row in rows:
        for text in row["doubts"]:
            counts.setdefault(text.partition(":")[0], []).append(text)
    lines = []
    for texts in counts.values():
        where = "" if len(rows) == 1 else f" ({len(texts)} of {len(rows)} rows)"
        lines.append(f"Do not trust this{where}: {texts[0]}.")
    return lines


def _notes(report: Report) -> list[str]:
    """What a reader of the figures must know."""
    rows = [row for row in report["results"] if row["status"] == "measured"]
    notes = []
    why = next((row["energy"]["why"] for row in rows if (row.get("energy") or {}).get("why")), "")
    if why:
        notes.append(f"Energy: {why}")
    missing = {row["profile_why"] for row in rows if row.get("profile_why")}
    notes += [f"Profile: {text}." for text in sorted(missing)]
    if report["inputs"] == "random numbers":
        notes.append("Inputs: random numbers; --reference gives real ones.")
    machine = report["environment"]
    facts = [str(machine.get("cpu", "")), f"{machine.get('cores')} cores"]
    facts += [str(machine[name]) for name in ("gpu", "power_mode") if machine.get(name)]
    notes.append(f"On {', '.join(fact for fact in facts if fact)}.")
    return notes


def _between(figure: Mapping[str, Any]) -> str:
    return f"{_ms(figure['value'])} [{_ms(figure['low'])}, {_ms(figure['high'])}]"


def _ms(value: float | None) -> str:
    """Milliseconds to three figures and more."""
    if value is None:
        return ""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _mb(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f}"

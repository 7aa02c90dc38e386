"""Reports: read one from its file, and compare two row by row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.latency import SCHEMA_VERSION

#: What tells one row of a report from the others.
KEY = ("artifact", "target", "runtime", "threads", "batch", "shapes", "phase", "streams")
#: What differs between any two runs, and says nothing of why their figures do.
MOMENTARY = ("load_1min", "temperature_c", "now")

#: Two loads of one file differ by up to so much, for as long as they stay loaded
#: (``benchmarks/bench_overhead.py``): a run's own interval doesn't know of it.
BETWEEN_LOADS = 0.02

Report = dict[str, Any]


def read_report(path: Path) -> Report:
    """A report that ``edgekit bench --output`` wrote.

    Raises:
        EdgekitError: it is missing, no report, or of another schema.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EdgekitError(f"{path} cannot be read.", str(error)) from error
    if not isinstance(report, dict) or not isinstance(report.get("results"), list):
        raise EdgekitError(
            f"{path} is no report of a benchmark.", "", "Write one with edgekit bench -o FILE.json."
        )
    if report.get("schema_version") != SCHEMA_VERSION:
        raise EdgekitError(
            f"{path} has schema_version {report.get('schema_version')}.",
            f"This edgekit reads {SCHEMA_VERSION}.",
            "Measure again.",
        )
    return dict(report)


def compare(before: Report, after: Report) -> Report:
    """How the rows of a report differ from those of an earlier one.

    A row's figure is its median latency (p90 in single-stream mode, samples a second in
    throughput mode), with the interval that its own run gives it, and two percent for where the
    weights came to lie in memory. A difference is noise where the intervals meet. What else the
    machine did between the runs is in the ratio: only a paired comparison is free of it.

    Returns:
        ``rows``, each with ``before``, ``after``, ``ratio`` (after by before), ``low``, ``high``
        and ``verdict`` (``faster``, ``slower``, either ``in doubt`` where a run can't be trusted,
        or ``within noise``); ``environment``: what differs; ``unmatched``: names of rows that
        only one has; ``notes``.

    Raises:
        EdgekitError: the reports are of different modes, or have no row in common.
    """
    if before["mode"] != after["mode"]:
        raise EdgekitError(
            "The two reports cannot be compared.",
            f"One measured in {before['mode']} mode, the other in {after['mode']}.",
        )
    if before["mode"] == "paired":
        raise EdgekitError(
            "Reports of paired comparisons hold ratios, not latencies.",
            "",
            "Compare reports of edgekit bench without --paired.",
        )
    old, new = _measured(before), _measured(after)
    if len({row["artifact"] for row in [*old, *new]}) == 2 and not _common(old, new):
        old, new = _anonymous(old), _anonymous(new)
    pairs = _common(old, new)
    if not pairs:
        raise EdgekitError(
            "The two reports have no row in common.",
            f"One has {_names(old)}; the other has {_names(new)}.",
        )
    rows = [_row(*pair) for pair in pairs]
    environment = dict(_differences(before["environment"], after["environment"]))
    return {
        "schema_version": SCHEMA_VERSION,
        "subjects": [before["subject"], after["subject"]],
        "mode": before["mode"],
        "rows": rows,
        "environment": environment,
        "unmatched": _unmatched(old, new),
        "notes": _notes(rows, environment),
    }


def name_of(row: Mapping[str, Any]) -> str:
    """A row in words, as unique as its identity."""
    parts = [str(row["artifact"]), str(row["runtime"])]
    if row["threads"] is not None:
        parts.append(f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}")
    if row["shapes"] is not None:
        parts.append(sizes_of(row))
    if row["phase"]:
        parts.append(row["phase"])
    if row["streams"] != 1:
        parts.append(f"{row['streams']} in flight")
    return ", ".join(parts)


def sizes_of(row: Mapping[str, Any]) -> str:
    """Input shapes: ``x 1x3x32x32``."""
    shapes = row["shapes"] or {}
    return " ".join(f"{name} {'x'.join(map(str, sizes))}" for name, sizes in shapes.items())


def _measured(report: Report) -> list[dict[str, Any]]:
    """Rows with a figure; a test's comparison has none."""
    rows = report["results"]
    return [row for row in rows if row["status"] == "measured" and "figure" in row]


def _key(row: Mapping[str, Any]) -> str:
    return json.dumps([row.get(name) for name in KEY], sort_keys=True)


def _common(
    old: list[dict[str, Any]], new: list[dict[str, Any]]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    known = {_key(row): row for row in old}
    return [(known[_key(row)], row) for row in new if _key(row) in known]


def _anonymous(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the artifact's name, where each report has one artifact, of another name."""
    return [{**row, "artifact": "the artifact", "target": None} for row in rows]


def _names(rows: list[dict[str, Any]]) -> str:
    return "; ".join(name_of(row) for row in rows[:3]) or "nothing"


def _row(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    one, two = old["figure"], new["figure"]
    low = two["low"] / one["high"] / (1 + BETWEEN_LOADS)
    high = two["high"] / one["low"] * (1 + BETWEEN_LOADS)
    better = "more" if one["name"] == "samples_s" else "less"
    doubts = [f"{when}: {text}" for when, row in (("before", old), ("after", new))
              for text in row["doubts"]]  # fmt: skip
    verdict = "within noise"
    if low > 1 or high < 1:
        verdict = "faster" if (low > 1) == (better == "more") else "slower"
        verdict += ", in doubt" if doubts else ""
    return {
        **{name: new[name] for name in KEY},
        "figure": one["name"],
        "before": one["value"],
        "after": two["value"],
        "ratio": two["value"] / one["value"],
        "low": low,
        "high": high,
        "verdict": verdict,
        "doubts": doubts,
    }


def _unmatched(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> dict[str, list[str]]:
    keys = {_key(row) for row, _ in _common(old, new)}
    return {
        when: [name_of(row) for row in rows if _key(row) not in keys]
        for when, rows in (("before", old), ("after", new))
    }


def _differences(
    one: Mapping[str, Any], two: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, list[Any]]]:
    """Facts that differ, by their path."""
    for name in dict.fromkeys([*one, *two]):
        left, right = one.get(name), two.get(name)
        if left == right or name in MOMENTARY:
            continue
        if isinstance(left, dict) and isinstance(right, dict):
            yield from _differences(left, right, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", [left, right]


def _notes(rows: list[dict[str, Any]], environment: Mapping[str, Any]) -> list[str]:
    notes = []
    if environment:
        notes.append("The environments differ, so the figures need not tell of the artifacts.")
    if any(row["doubts"] for row in rows):
        notes.append("A run that is compared could not be trusted: see its doubts.")
    notes.append(
        "The two ran at different times; --paired compares artifacts free of what changed between."
    )
    return notes

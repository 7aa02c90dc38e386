"""What ``predict_error.py`` found, as a file of parameters and as a section of the docs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import page


def as_toml(fitted: dict[str, Any], command: str) -> str:
    """The file's text."""
    lines = [f"# Written by {command}: do not edit."]
    tables = {name: value for name, value in fitted.items() if isinstance(value, dict)}
    lines += [f"{n} = {json.dumps(v)}" for n, v in fitted.items() if n not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]"]
        for key, value in table.items():
            lines.append(f"{json.dumps(key)} = {_inline(value)}")
    return "\n".join(lines) + "\n"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)


def section(results: dict[str, Any], command: str) -> str:
    """For docs/predict.md."""
    all_, seen = results["overall"], results["seen_device"]

    def percent(value: float) -> str:
        return f"{value:.0%}"

    def table(rows: Sequence[dict[str, Any]], name: str, *columns: str) -> str:
        cells = [
            (
                row[name],
                row["points"],
                percent(row["median_error"]),
                f"{row['bias']:.2f}",
                *(percent(row[column]) for column in columns),
            )
            for row in rows
        ]
        heads = ("points", "median error", "bias", *("90% interval holds" for _ in columns))
        return page.table((name, *heads), cells)

    runtimes = [
        (
            name,
            row["devices"],
            row["points"],
            percent(row["median_error"]),
            f"{row['factor']:.2f}",
            percent(row["coverage"]),
        )
        for name, row in results["runtimes"].items()
    ]
    columns = ("runtime", "devices", "points", "median error", "interval", "holds")
    return "\n\n".join(
        (
            f"`{command}` made this. Each device was left out in turn, with all of its points, and "
            f"predicted by a fit on the others: the median error over {all_['points']} points of "
            f"{all_['devices']} devices is **{percent(all_['median_error'])}**, and the 90% "
            f"interval, made without that device too, holds **{percent(all_['coverage'])}** of "
            "them. (Where a runtime has one device, as CPUs here, leaving it out leaves nothing "
            "of the runtime: it is predicted as a GPU would be. That is in the table, not in these "
            "figures.) On a device that points are of, with the model left out instead, the median "
            f"error is {percent(seen['median_error'])} and the interval (a factor of "
            f"{seen['factor']:.2f} up or down) holds {percent(seen['coverage'])}. In the sample "
            f"itself it is {percent(results['in_sample_median_error'])}. Bias is the median of "
            "predicted over published.",
            table(results["by_device"], "device", "coverage"),
            "By precision, the CPU among them:",
            table(results["by_precision"], "precision", "coverage"),
            "The interval of a runtime is the factor, up or down, of a device that no point is of; "
            "where a runtime has one device, it is that of all points.",
            page.table(columns, runtimes),
            "The Orins are nearly one chip, and a neighbour helps. With all devices of a family "
            "left out at once:",
            table(results["families"], "family"),
        )
    )

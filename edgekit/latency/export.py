"""Export: a report as CSV, and as pytest-benchmark's JSON."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Iterable, Mapping
from typing import Any

from edgekit.latency.reports import Report, name_of, sizes_of

_LATENCY = ("avg", "p50", "p90", "p95", "p99", "min", "max", "std")
COLUMNS = (
    *("artifact", "target", "runtime", "threads", "batch", "shapes", "phase", "streams", "status"),
    *("load_ms", "first_ms", *(f"{name}_ms" for name in _LATENCY)),
    *("throughput", "iterations", "warmup", "spread"),
    *("to_device_ms", "compute_ms", "to_host_ms", "peak_memory_mb", "device_memory_mb"),
    *("meter", "joules_per_inference", "watts"),
    *("ratio", "ratio_low", "ratio_high", "doubts"),
)
#: The version of pytest-benchmark whose form this is.
FORM = "5.1.0"


def to_csv(report: Report) -> str:
    """One line a row; what a row lacks is empty."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_flat(row) for row in report["results"])
    return out.getvalue()


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: row[name] for name in COLUMNS if row.get(name) is not None}
    ratio = row.get("paired") or {}
    energy = {k: v for k, v in (row.get("energy") or {}).items() if k in COLUMNS and v is not None}
    return {
        **known,
        "shapes": sizes_of(row),
        **(row.get("cold") or {}),
        **{f"{name}_ms": value for name, value in (row.get("latency_ms") or {}).items()},
        **{f"{name}_ms": value for name, value in (row.get("device_ms") or {}).items()},
        **energy,
        **{f"ratio{end and '_' + end}": ratio[end or "ratio"] for end in ("", "low", "high")
           if ratio},
        "doubts": "; ".join(row.get("doubts") or ()),
    }  # fmt: skip


def to_pytest_benchmark(report: Report) -> str:
    """The measured latencies in the form that ``pytest-benchmark compare`` reads."""
    rows = [row for row in report["results"] if "latency_ms" in row]
    return json.dumps(
        {
            "machine_info": _machine(report["environment"]),
            "commit_info": {"id": "unknown", "time": None, "dirty": None, "branch": "unknown"},
            "benchmarks": list(_benchmarks(rows)),
            "datetime": report["created"],
            "version": FORM,
        },
        indent=1,
        default=str,
    )


def _benchmarks(rows: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    for row in rows:
        name = name_of(row)
        extra = {
            key: row.get(key)
            for key in ("threads", "batch", "throughput", "peak_memory_mb", "energy", "doubts")
        }
        yield {
            "group": row["artifact"],
            "name": name,
            "fullname": f"edgekit bench: {name}",
            "params": None,
            "param": None,
            "extra_info": extra,
            "options": {},
            "stats": _stats(row),
        }


def _stats(row: Mapping[str, Any]) -> dict[str, Any]:
    """In seconds, as pytest-benchmark has them."""
    latency, box, count = row["latency_ms"], row["box_ms"], row["iterations"]
    beyond = box["outliers"]
    milliseconds = {
        "min": latency["min"],
        "max": latency["max"],
        "mean": latency["avg"],
        "stddev": latency["std"],
        "median": latency["p50"],
        "iqr": box["q3"] - box["q1"],
        "q1": box["q1"],
        "q3": box["q3"],
        "ld15iqr": box["low"],
        "hd15iqr": box["high"],
        "total": latency["avg"] * count,
    }
    return {
        **{name: value / 1e3 for name, value in milliseconds.items()},
        "rounds": count,
        "iterations": 1,
        "ops": 1e3 / latency["avg"],
        "stddev_outliers": beyond[0],
        "iqr_outliers": beyond[1],
        "outliers": f"{beyond[0]};{beyond[1]}",
    }


def _machine(environment: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "node": platform.node(),
        "machine": platform.machine(),
        "system": platform.system(),
        "release": platform.release(),
        "python_implementation": platform.python_implementation(),
        "python_version": environment.get("python"),
        "cpu": {"brand_raw": environment.get("cpu"), "count": environment.get("cores")},
        "edgekit": dict(environment),
    }

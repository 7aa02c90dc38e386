"""The tables of benchmarks/spiking.py, and what they claim."""

from __future__ import annotations

from typing import Any

import page

SCRIPT = "benchmarks/spiking.py"
#: (T, way) -> points of top-1 that may be lost against the source in fp32.
AIMS = {(8, "tuned"): 0.5, (16, "calibrated"): 1.0}
#: The time of a folded INT8 engine, over the INT8 engine of its source.
RATIO = 1.05
WAYS = {"calibrated": "calibration alone", "tuned": "fine-tuned"}
#: The columns of accuracy: way, form and precision.
ENGINES = (
    ("calibrated", "folded", "PyTorch"),
    ("calibrated", "folded", "int8"),
    ("tuned", "folded", "PyTorch"),
    ("tuned", "folded", "int8"),
    ("tuned", "temporal", "int8"),
)


def claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The aims that can be judged, each with whether it holds in the mean over seeds."""
    models = dict.fromkeys(cell["model"] for cell in found["cells"])
    made = [claim for model in models for claim in _accuracy_claims(found["cells"], model)]
    made += [claim for model in models for claim in _form_claims(found["cells"], model)]
    rows = found.get("latency", {}).get("rows", [])
    return made + [claim for model in models for claim in _latency_claims(rows, model)]


def _accuracy_claims(cells: list[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    before = top1(cells, model, None, ("source", "folded", "fp32"))
    made = []
    for (steps, way), most in AIMS.items():
        after = top1(cells, model, steps, (way, "folded", "int8"))
        if before and len(after) == len(before):
            lost = (sum(before) - sum(after)) / len(before)
            text = f"{model}, T = {steps}, {WAYS[way]}, INT8: {_points(lost)} of fp32; aim: "
            claim = {"claim": f"{text}at most {most} points below", "holds": lost <= most + 1e-9}
            made.append(claim)
    return made


def _points(lost: float) -> str:
    return f"{abs(lost):.2f} points {'above' if lost < 0 else 'below'} the accuracy"


def _form_claims(cells: list[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    """That neurons give what folded units give."""
    rows = [row for cell in cells if cell["model"] == model for row in cell["rows"]]
    found = [row["difference"] for row in rows if row.get("difference") is not None]
    if not found:
        return []
    text = f"{model}, {len(found)} temporal INT8 engines: outputs differ from the folded engine's"
    return [{"claim": f"{text} by at most {max(found):.1g}; aim: 0", "holds": max(found) == 0}]


def _latency_claims(rows: list[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    made = []
    chosen = [row for row in rows if row["model"] == model and row["steps"]]
    for steps in dict.fromkeys(row["steps"] for row in chosen):
        found = [r["ratio"] for r in chosen if (r["steps"], r["form"]) == (steps, "folded")]
        if found:
            mean = sum(found) / len(found)
            text = f"{model}, T = {steps}, folded INT8: {mean:.2f} of the time of the source's INT8"
            made.append({"claim": f"{text}; aim: at most {RATIO}", "holds": mean <= RATIO})
    return made


def top1(
    cells: list[dict[str, Any]], model: str, steps: int | None, engine: tuple[str, str, str]
) -> list[float]:
    """Percent correct of an engine (way, form, precision), one value a seed."""
    rows = _rows(cells, model, steps, engine)
    return [100 * row["top1"] for row in rows if "top1" in row]


def _rows(
    cells: list[dict[str, Any]], model: str, steps: int | None, engine: tuple[str, str, str]
) -> list[dict[str, Any]]:
    return [
        row
        for cell in cells
        if (cell["model"], cell["steps"]) == (model, steps)
        for row in cell["rows"]
        if (row["way"], row["form"], row["precision"]) == engine
    ]


def accuracy(cells: list[dict[str, Any]], model: str) -> str:
    """A table with one row a T: means over seeds, and from which to which they go."""
    columns = ["T", *(f"{WAYS[w]}, {_kind(f, p)}" for w, f, p in ENGINES)]
    steps = sorted({cell["steps"] for cell in cells if cell["model"] == model} - {None})
    lines = [[f"{t}", *(_cell(cells, model, t, engine) for engine in ENGINES)] for t in steps]
    return page.table(columns, lines)


def _kind(form: str, precision: str) -> str:
    shown = {"int8": "INT8"}.get(precision, precision)
    return shown if form == "folded" else f"{shown}, {form}"


def _cell(
    cells: list[dict[str, Any]], model: str, steps: int | None, engine: tuple[str, str, str]
) -> str:
    rows = _rows(cells, model, steps, engine)
    failed = [row["failed"] for row in rows if "failed" in row]
    if failed:
        return f"{len(failed)} of {len(rows)} failed: {failed[0]}"
    return page.spread([100 * row["top1"] for row in rows]) if rows else ""


def latency(rows: list[dict[str, Any]], model: str) -> str:
    """A table with one row an engine: means over seeds, and from which to which they go."""
    columns = ("engine", "ms", "ms of the source's INT8", "ratio")
    chosen = [row for row in rows if row["model"] == model]
    lines = []
    for engine in dict.fromkeys((r["steps"], r["form"], r["precision"]) for r in chosen):
        same = [r for r in chosen if (r["steps"], r["form"], r["precision"]) == engine]
        steps, form, precision = engine
        name = f"T = {steps}, {form}, INT8" if steps else f"source, {_kind(form, precision)}"
        figures = ("first_ms", "{:.3f}"), ("second_ms", "{:.3f}"), ("ratio", "{:.2f}")
        lines.append((name, *(page.spread([r[k] for r in same], form) for k, form in figures)))
    return page.table(columns, lines)


def section(found: dict[str, Any], words: str) -> str:
    """The results as Markdown; ``words`` say what was done."""
    cells, machine = found["cells"], found["environment"]
    parts = [f"## Spiking units (`python {SCRIPT}`)", words.replace("\n", " ")]
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(cell["seed"] for cell in cells))
    parts.append(
        f"{machine['cpu']}, {machine['cores']} cores; seeds {seeds}. Figures are means over the "
        f"seeds, with the least and the largest; accuracy is top-1 in %."
    )
    for model in dict.fromkeys(cell["model"] for cell in cells):
        passes = next((c["passes"] for c in cells if c["model"] == model and c["passes"]), [])
        before = [
            f"{shown} {_cell(cells, model, None, ('source', 'folded', precision))}"
            for precision, shown in (("fp32", "fp32"), ("int8", "INT8"))
        ]
        tuning = f"; fine-tuning: `{passes[1]}`" if passes else ""
        parts += [f"**{model}**, source: {', '.join(before)}{tuning}", accuracy(cells, model)]
    return "\n\n".join([*parts, *_latency_parts(found), *_verdicts(found["claims"])])


def _latency_parts(found: dict[str, Any]) -> list[str]:
    if "latency" not in found:
        return ["Latency was not measured."]
    rows, machine = found["latency"]["rows"], found["latency"]["environment"]
    parts = [
        f"### Latency (`python {SCRIPT} --latency`)",
        "ONNX Runtime on one thread, a call of one image, each engine in turns with the INT8 "
        f"engine of its source; load of the machine {machine['load_1min']:.1f}.",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        parts += [f"**{model}**", latency(rows, model)]
    return parts


def _verdicts(claims: list[dict[str, Any]]) -> list[str]:
    lines = [f"- {'Holds' if c['holds'] else 'Does not hold'}: {c['claim']}." for c in claims]
    return ["### Aims", "\n".join(lines)] if lines else []

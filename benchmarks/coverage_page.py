"""coverage_page: what coverage.py found, as a table and as a page."""

from __future__ import annotations

import re
from typing import Any

COLUMNS = {"onnx": "ONNX", "tensorrt": "TensorRT-RTX", "coreml": "Core ML", "int8": "INT8 ONNX"}
PAGE = """# Coverage

Made by `python benchmarks/coverage.py --markdown docs/coverage.md`; do not edit by hand.
Versions: {versions}.

One small variant of each transformer and hybrid family, with **random weights and random
inputs**: a pass proves that the artifact computes what the source model computes, and nothing
about accuracy. A name ending in `:4` keeps four of the model's blocks.

- **ONNX**: fp32 with a largest error under 1e-4 (of the outputs' peak where that is above 1),
  and fp16 with a cosine above 0.9999, both in ONNX Runtime.
- **TensorRT-RTX**: an fp16 engine is **built** for SM 8.9, of the same fp16 ONNX file; for the
  first eight models also for SM 8.6 and 12.0. No GPU here runs it: its numbers are not checked.
- **Core ML**: an fp16 package for iOS 17, cosine above 0.9999 in `edgekit.converters.mil`.
- **INT8 ONNX**: it converts and runs; the cosine is for information.

{grid}

## What does not work, and why

{failures}
"""


def verdict(model: dict[str, Any], backend: str) -> tuple[bool, str] | None:
    """Whether a model passes in a backend, and why not; None if it was not tried."""
    rows = [row for name, row in model["checks"].items() if name.split()[0] == backend]
    if not rows:
        return None
    reasons = [row["reason"] for row in rows if not row["ok"]]
    return not reasons, reasons[0] if reasons else ""


def totals(models: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Passed and tried, by backend."""
    found = {}
    for backend in COLUMNS:
        verdicts = [v for model in models.values() if (v := verdict(model, backend)) is not None]
        found[backend] = (sum(ok for ok, _ in verdicts), len(verdicts))
    return found


def rows_of(models: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row a model, then the totals."""
    rows = [
        (name, *(_cell(model, backend) for backend in COLUMNS), f"{_seconds(model):.0f}")
        for name, model in models.items()
    ]
    shares = [f"{p} of {n} ({p / n:.1%})" if n else "" for p, n in totals(models).values()]
    seconds = sum(map(_seconds, models.values()))
    return [*rows, (f"{len(models)} models", *shares, f"{seconds:.0f}")]


def _seconds(model: dict[str, Any]) -> float:
    return float(sum(row["seconds"] for row in model["checks"].values()))


def _cell(model: dict[str, Any], backend: str) -> str:
    found = verdict(model, backend)
    if found is None:
        return ""
    if not found[0]:
        return f"fail: {found[1][:100]}"
    if backend == "int8":
        return f"pass, cosine {model['checks']['int8 int8 cpu']['cosine']:.4f}"
    return "pass"


def markdown(results: dict[str, Any]) -> str:
    """The results as a page."""
    models = results["models"]
    header = ("model", *COLUMNS.values(), "seconds")
    lines = [header, ("---",) * len(header)]
    lines += [(row[0], *(cell.split(":")[0] for cell in row[1:])) for row in rows_of(models)]
    grid = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    failures = [
        f"- `{name}`, {COLUMNS[backend]}: {re.sub(r'/tmp/[^ ]*/', '', found[1])}"
        for name, model in models.items()
        for backend in COLUMNS
        if (found := verdict(model, backend)) is not None and not found[0]
    ]
    versions = ", ".join(f"{k} {v}" for k, v in results["environment"]["versions"].items())
    return PAGE.format(grid=grid, failures="\n".join(failures) or "None.", versions=versions)

"""How far the predicted memory is from what TensorRT-RTX says an engine needs.

    python benchmarks/predict_memory.py

Builds engines for rtx-4090 (no GPU needed) of models with random weights, and compares the size of
the engine and its activation memory, both the builder's own figures, with what is predicted. Writes
``benchmarks/results/predict_memory.json`` and a section of ``docs/predict.md``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import page

from edgekit import files, predicting, targets
from edgekit.machine import environment
from edgekit.progress import say
from edgekit.recipe import Recipe
from edgekit.work import Work

SCRIPT = "benchmarks/predict_memory.py"
ROOT = Path(__file__).parent.parent
MODELS = ("resnet18", "deit_tiny_patch16_224", "mobilenetv2_100", "mobilevitv2_050", "fastvit_t8")
PRECISIONS = ("fp32", "fp16", "int8")


def compare(model: str, precision: str) -> dict[str, Any]:
    """Megabytes of an engine's weights and activations, built and predicted."""
    fields = {"model": f"timm/{model}", "targets": ("rtx-4090",), "precision": precision}
    data = {"random_weights": True, "random_calibration": True, "samples": 1, "effort": "quick"}
    recipe = Recipe.check({**fields, **data}, "the benchmark")
    (predicted,) = predicting.predict(recipe)
    work = Work(recipe)
    made = work.quantize() if recipe.scheme else None
    target = targets.load("rtx-4090")
    with tempfile.TemporaryDirectory() as folder:
        onnx, plan = Path(folder) / "model.onnx", Path(folder) / "engine.plan"
        work.convert(work.lower(target, made), "onnx", onnx, target)
        artifact = work.convert(onnx, "tensorrt", plan, target)
        stored = plan.stat().st_size / 1e6
    return {
        "model": model,
        "precision": precision,
        "engine_mb": round(stored, 2),
        "weights_mb": round(predicted.memory.weights, 2),
        "activation_mb": round(int(artifact.details["activation_bytes"]) / 1e6, 2),
        "predicted_activation_mb": round(predicted.memory.activations, 2),
    }


def section(rows: list[dict[str, Any]]) -> str:
    """For docs/predict.md."""
    base = float(np.median([r["activation_mb"] - r["predicted_activation_mb"] for r in rows]))
    off = {precision: _error(rows, precision, base) for precision in PRECISIONS}
    errors = ", ".join(f"{error:.0%} in {precision}" for precision, error in off.items())
    return "\n\n".join(
        (
            f"`python {SCRIPT}` made this: engines for rtx-4090, built by TensorRT-RTX, whose size "
            f"and activation memory are its own figures. It takes {base:.1f} MB more than what is "
            "alive (median), which is added to what is predicted for TensorRT. With it, weights "
            f"and activations together are off by {errors} (medians): its integer engines hold "
            "more than integers.",
            page.table(
                ("model", "precision", "engine MB", "weights", "activations MB", "predicted"),
                [tuple(row.values()) for row in [_ordered(row) for row in rows]],
            ),
        )
    )


def _error(rows: list[dict[str, Any]], precision: str, base: float) -> float:
    """The median error of all memory."""
    found = [
        (row["weights_mb"] + row["predicted_activation_mb"] + base)
        / (row["engine_mb"] + row["activation_mb"])
        for row in rows
        if row["precision"] == precision
    ]
    return float(np.median(np.abs(np.array(found) - 1)))


def _ordered(row: dict[str, Any]) -> dict[str, Any]:
    names = "model precision engine_mb weights_mb activation_mb predicted_activation_mb".split()
    return {name: row[name] for name in names}


def main() -> None:
    """Build, compare, write."""
    rows = []
    for model in MODELS:
        for precision in PRECISIONS:
            rows.append(compare(model, precision))
            say(f"{model} in {precision}: built")
    report = {"schema_version": 1, "environment": environment(), "rows": rows}
    out = Path(__file__).parent / "results" / "predict_memory.json"
    files.write_text(out, json.dumps(report, indent=1, default=str) + "\n")
    page.write_section(ROOT / "docs" / "predict.md", SCRIPT, section(rows))


if __name__ == "__main__":
    main()

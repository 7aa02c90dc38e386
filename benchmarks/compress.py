"""Smaller models of the digits: pruned, distilled, in INT8; and torch-pruning used alone.

    python benchmarks/compress.py --markdown docs/compress-benchmarks.md     # two hours on 2 cores

Three models trained on the digits (examples/train_digits.py), three seeds each. Ours is pruned to a
budget of multiply-accumulates and distilled from its source; torch-pruning alone prunes to the same
budget, and trains on the labels for as many updates on the same images. All become ONNX by the same
converter. Latency is of ONNX Runtime on one thread, each in turns with the source's fp32 file.
Accuracy is of the artifacts, on 360 images that nothing was trained or calibrated on.

Finished cells are kept in the work folder: a stopped run goes on there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import compress_peer
import digits_models
import page

from edgekit import compression, targets
from edgekit.compress import parse
from edgekit.errors import EdgekitError
from edgekit.files import write_text
from edgekit.latency import Settings, paired
from edgekit.machine import environment
from edgekit.recipe import Recipe
from edgekit.source import Source
from edgekit.work import Work

RESULT = Path(__file__).parent / "results" / "compress.json"
#: What comes before distillation, by model.
PASSES = {
    "vit": ("prune:flops=0.4",),
    "crossvit": ("prune:flops=0.25",),
    "mamba": ("drop_layers:count=1", "prune:flops=0.9"),
}
#: What gives the outputs: torch-pruning has to be told.
HEADS = {"vit": ("head",), "crossvit": ("head.0", "head.1"), "mamba": ("head",)}
STEPS = {"vit": 600, "crossvit": 600, "mamba": 1500}
DISTILL = "distill:steps={},rate=0.001,losses=[logits,labels:0.1]"
#: Warped copies of each training image.
COPIES = 16
SETTINGS = {"warmup": 10, "iterations": 400, "seconds": 6.0}
COLUMNS = ("stage", "top-1 %", "parameters k", "operations M", "ms", "of the source's fp32")


class Cell:
    """One model and seed: everything that is made of it."""

    def __init__(self, model: str, seed: int, work: Path, steps: int) -> None:
        self.name, self.seed, self.steps = model, seed, steps
        self.folder = work / "compress" / f"{model}_{seed}"
        self.source = digits_models.trained(model, seed, work)
        calibration, evaluation = digits_models.images()
        self.fields = {
            "targets": ["cpu"],
            "calibration": calibration,
            "evaluation": evaluation,
            "training": digits_models.training(work, COPIES),
        }

    def rows(self) -> list[dict[str, Any]]:
        """The stages, each with its artifact's accuracy and latency."""
        pruned, distilled = self.folder / "pruned", self.folder / "distilled"
        passes = PASSES[self.name]
        distill = DISTILL.format(self.steps)
        compression.compress(self._recipe(self.source, passes), pruned)
        compression.compress(self._recipe(self.source, (*passes, distill)), distilled)
        named = {
            "source": (self.source, "fp32"),
            "source, INT8": (self.source, "int8"),
            "pruned": (f"compressed/{pruned}", "fp32"),
            "pruned + distilled": (f"compressed/{distilled}", "fp32"),
            "pruned + distilled, INT8": (f"compressed/{distilled}", "int8"),
        }
        found = [
            {"stage": stage, **self._made(stage, source, precision)}
            for stage, (source, precision) in named.items()
        ]
        return [*found, *self._alone(found[2]["operations"], parse(distill))]

    def _recipe(self, model: str, passes: tuple[str, ...] = (), precision: str = "fp32") -> Recipe:
        asked = {"model": model, "precision": precision, "seed": self.seed, "passes": passes}
        return Recipe.check({**self.fields, **asked}, "compress")

    def _alone(self, budget: int, options: Any) -> list[dict[str, Any]]:
        """torch-pruning's rows, or the one that says why there are none."""
        plain = Source(self._recipe(self.source))
        _, training = plain.fitting
        stages = ("torch-pruning", "torch-pruning + training", "torch-pruning + training, INT8")
        try:
            if training is None:
                raise EdgekitError("There is no training data.")
            calibration = plain.datasets[0]
            made = compress_peer.pruned(plain.original, budget, calibration, HEADS[self.name])
        except EdgekitError as error:
            return [{"stage": stages[0], "failed": f"{error.what} {error.why}".strip()}]
        after = compress_peer.trained(made, training, options, self.seed)
        given = zip(stages, ((made, "fp32"), (after, "fp32"), (after, "int8")), strict=True)
        return [
            {"stage": stage, **self._made(stage, self.source, precision, model)}
            for stage, (model, precision) in given
        ]

    def _made(self, stage: str, source: str, precision: str, model: Any = None) -> dict[str, Any]:
        """An artifact's figures; ``model`` is what is converted, if not the source."""
        from edgekit.compress import measure

        work = Work(self._recipe(source, precision=precision))
        if model is not None:
            work.original = model
        path = self.folder / f"{stage.replace(' ', '_').replace(',', '')}.onnx"
        work.single(targets.load("cpu"), "onnx", path)
        first = self.folder / "source.onnx"
        inputs = work.batches[0]
        ratio = paired(path, first, "onnxruntime", Settings(inputs, **SETTINGS), 1)
        return {
            "top1": work.top1(work.run(path, "onnxruntime")),
            "parameters": measure.parameters(work.model.module),
            "operations": measure.operations(work.model),
            "ms": ratio.first_ms,
            "ratio": ratio.ratio,
            "low": ratio.low,
            "high": ratio.high,
        }


def table(cells: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row a stage: means over seeds, and from which to which they go."""
    stages = list(dict.fromkeys(row["stage"] for cell in cells for row in cell["rows"]))
    rows = []
    for stage in stages:
        found = [row for cell in cells for row in cell["rows"] if row["stage"] == stage]
        failed = [row["failed"] for row in found if "failed" in row]
        if failed:
            rows.append((stage, failed[0], *[""] * (len(COLUMNS) - 2)))
            continue
        rows.append(
            (
                stage,
                page.spread([100 * row["top1"] for row in found]),
                page.spread([row["parameters"] / 1e3 for row in found], "{:.0f}"),
                page.spread([row["operations"] / 1e6 for row in found], "{:.1f}"),
                page.spread([row["ms"] for row in found], "{:.3f}"),
                page.spread([row["ratio"] for row in found]),
            )
        )
    return rows


def section(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    machine = found["environment"]
    parts = [
        "## Pruned, distilled, INT8 (`python benchmarks/compress.py`)",
        (__doc__ or "").split("\n\n")[2].replace("\n", " "),
        f"{machine['cpu']}; mean over seeds, and their least and largest.",
    ]
    for model in PASSES:
        cells = [cell for cell in found["cells"] if cell["model"] == model]
        if cells:
            seeds = ", ".join(str(cell["seed"]) for cell in cells)
            passes = ", ".join(f"`{entry}`" for entry in cells[0]["passes"])
            parts += [f"**{model}**, seeds {seeds}: {passes}", page.table(COLUMNS, table(cells))]
    return "\n\n".join(parts)


def main() -> None:
    """Make every cell, save and show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="*", choices=PASSES, default=list(PASSES))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(digits_models.SEEDS))
    parser.add_argument("--steps", type=int, help=f"of distillation; if not given {STEPS}")
    parser.add_argument("--work", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    cells = []
    for model in options.models:
        for seed in options.seeds:
            steps = options.steps or STEPS[model]
            cell = Cell(model, seed, options.work.absolute(), steps)
            kept = cell.folder / "rows.json"
            passes = [*PASSES[model], DISTILL.format(steps)]
            if not kept.exists() or json.loads(kept.read_text())["passes"] != passes:
                made = {"model": model, "seed": seed, "passes": passes, "rows": cell.rows()}
                write_text(kept, json.dumps({**made, "environment": environment()}, indent=1))
            cells.append(json.loads(kept.read_text()))
            found = {"schema_version": 1, "environment": environment(), "cells": cells}
            write_text(options.output, json.dumps(found, indent=1) + "\n")
    sys.stdout.write(section(found) + "\n")
    if options.markdown:
        page.write_section(options.markdown, "benchmarks/compress.py", section(found))


if __name__ == "__main__":
    main()

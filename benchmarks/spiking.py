"""Spiking units on the digits: accuracy over T, the cost of calibration alone, and latency.

    python benchmarks/spiking.py                          # accuracy; an hour on one core
    python benchmarks/spiking.py --latency --markdown docs/spiking-benchmarks.md   # a quiet machine

The digits ViT (examples/train_digits.py) and a PoolFormer (benchmarks/spiking_models.py), three
seeds each, get spiking units of T steps (`spiking`), calibrated on 180 images; then they are
fine-tuned (`distill`) from their source on 16 warped copies of each of the 1,257 training images.
All become ONNX files for the CPU, and accuracy is theirs in ONNX Runtime (beside PyTorch's own),
on 360 images that nothing was trained or calibrated on. Folded is a unit in one pass; temporal is
the same model with its T steps written out as neurons.

With --latency the INT8 files of the fine-tuned models are timed too: a call of one image on one
thread, in turns with the source's INT8 file. Finished cells are kept in the work folder: a stopped
run goes on there. Remove its folder spiking/ after a change of the passes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import digits_models
import numpy as np
import page
import spiking_models
import spiking_report

from edgekit import compression, targets
from edgekit.compress import entry_of, parse
from edgekit.errors import EdgekitError
from edgekit.files import write_text
from edgekit.latency import Settings, paired
from edgekit.machine import environment
from edgekit.recipe import Recipe
from edgekit.work import Work

RESULT = Path(__file__).parent / "results" / "spiking.json"
STEPS = (2, 4, 8, 16, 32)
#: Those that also run as neurons, and whose latency is measured.
TIMED = (4, 8, 16)
UPDATES = 200
DISTILL = "distill:steps={},rate=0.001,losses=[logits,labels:0.1]"
#: Warped copies of each training image.
COPIES = 16
SETTINGS = {"warmup": 10, "iterations": 400, "seconds": 6.0}


class Bench:
    """One model and seed: everything that is made of it."""

    def __init__(self, model: str, seed: int, work: Path, updates: int) -> None:
        self.model, self.seed, self.work = model, seed, work
        self.folder = work / "spiking" / f"{model}_{seed}"
        self.distill = DISTILL.format(updates)

    @cached_property
    def source(self) -> dict[str, Any]:
        """The trained model, as fields of a recipe."""
        return spiking_models.source(self.model, self.seed, self.work)

    @cached_property
    def data(self) -> dict[str, Any]:
        """What it is calibrated on, fine-tuned on and judged on."""
        calibration, evaluation = digits_models.images()
        training = digits_models.training(self.work, COPIES)
        return {"calibration": calibration, "evaluation": evaluation, "training": training}

    def cell(self, steps: int | None) -> dict[str, Any]:
        """The rows of one T, or of the source where it is None; made once."""
        passes = [] if steps is None else [f"spiking:steps={steps}", self.distill]
        key = {"model": self.model, "seed": self.seed, "steps": steps}
        key |= {"passes": passes, "copies": COPIES}
        kept = self.folder / f"{steps or 'source'}.json"
        held = json.loads(kept.read_text()) if kept.exists() else {}
        if {name: held.get(name) for name in key} != key:
            rows = self._source_rows() if steps is None else self._rows(steps, passes)
            held = {**key, "rows": rows}
            write_text(kept, json.dumps(held, indent=1))
        return held

    def latency(self) -> list[dict[str, Any]]:
        """The INT8 engines against the source's INT8 engine, which must have been made before."""
        first = self._file(None, "source", "folded", "int8")
        inputs = Work(self._recipe(self.source)).batches[0]
        asked = [(None, "source", "folded", "fp32")]
        asked += [
            (steps, "tuned", form, "int8") for form in ("folded", "temporal") for steps in TIMED
        ]
        rows = []
        for steps, way, form, precision in asked:
            path = self._file(steps, way, form, precision)
            if path.exists():
                ratio = paired(path, first, "onnxruntime", Settings(inputs, **SETTINGS), 1)
                row = {"model": self.model, "seed": self.seed, "steps": steps, "form": form}
                rows.append({**row, "precision": precision, **ratio.as_dict()})
        return rows

    def _source_rows(self) -> list[dict[str, Any]]:
        asked = (("fp32", self.source), ("int8", self.source))
        return [self._row(None, "source", "folded", name, fields) for name, fields in asked]

    def _rows(self, steps: int, passes: list[str]) -> list[dict[str, Any]]:
        """Calibrated, then fine-tuned: the model as it is, and as engines."""
        calibrated, tuned = (self.folder / f"{way}_{steps}" for way in ("calibrated", "tuned"))
        recipe = self._recipe(self.source, passes=passes[:1])
        stages = [compression.compress(recipe, calibrated)[-1]]
        # The teacher is named, as the units are not fitted a second time.
        distill = entry_of(dataclasses.replace(parse(passes[1]), **self._teacher()))
        recipe = self._recipe({"model": f"compressed/{calibrated}", "passes": (distill,)})
        stages.append(compression.compress(recipe, tuned)[-1])
        rows = []
        for way, stage in zip(("calibrated", "tuned"), stages, strict=True):
            row = {"way": way, "form": "folded", "precision": "PyTorch", "top1": stage.top1}
            made = {"model": f"compressed/{self.folder / f'{way}_{steps}'}"}
            engine = self._row(steps, way, "folded", "int8", made)
            rows += [{**row, "seconds": stage.seconds}, engine]
        if steps in TIMED:
            made["passes"] = (f"spiking:steps={steps},form=temporal",)
            row = self._row(steps, "tuned", "temporal", "int8", made)
            rows.append({**row, "difference": self._difference(steps, made)})
        return rows

    def _teacher(self) -> dict[str, Any]:
        names = {"model": "teacher", "checkpoint": "teacher_checkpoint"}
        return {names[name]: value for name, value in self.source.items()}

    def _recipe(self, fields: dict[str, Any], **others: Any) -> Recipe:
        asked = {"targets": ["cpu"], "seed": self.seed, **self.data, **fields, **others}
        return Recipe.check(asked, "spiking")

    def _file(self, steps: int | None, way: str, form: str, precision: str) -> Path:
        return self.folder / f"{way}_{steps or 0}_{form}_{precision}.onnx"

    def _row(
        self, steps: int | None, way: str, form: str, precision: str, fields: dict[str, Any]
    ) -> dict[str, Any]:
        """The figures of one engine, or why there is none."""
        row = {"way": way, "form": form, "precision": precision}
        work = Work(self._recipe(fields, precision=precision))
        path = self._file(steps, way, form, precision)
        try:
            _, _, drift = work.single(targets.load("cpu"), "onnx", path)
        except EdgekitError as error:
            return {**row, "failed": f"{error.what} {error.why}".strip()}
        judged = {"cosine": drift.cosine} if drift else {}
        return {**row, **judged, "top1": work.top1(work.run(path, "onnxruntime"))}

    def _difference(self, steps: int, fields: dict[str, Any]) -> float | None:
        """The largest between outputs of the folded and the temporal INT8 engine."""
        paths = [self._file(steps, "tuned", form, "int8") for form in ("folded", "temporal")]
        if not all(path.exists() for path in paths):
            return None
        work = Work(self._recipe(fields))
        one, other = (work.run(path, "onnxruntime") for path in paths)
        found = (np.abs(a[n] - b[n]).max() for a, b in zip(one, other, strict=True) for n in a)
        return float(max(found))


def measured(benches: list[Bench], kept: Path) -> dict[str, Any]:
    """Latency of all, measured anew and kept."""
    rows = [row for bench in benches for row in bench.latency()]
    found = {"environment": environment(), "rows": rows}
    write_text(kept, json.dumps(found, indent=1))
    return found


def main() -> None:
    """Make every cell, save and show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    models = spiking_models.MODELS
    parser.add_argument("--models", nargs="*", choices=models, default=list(models))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(digits_models.SEEDS))
    parser.add_argument("--steps", nargs="*", type=int, default=list(STEPS), help="T")
    parser.add_argument("--updates", type=int, default=UPDATES, help="of fine-tuning")
    parser.add_argument("--latency", action="store_true", help="measure it; otherwise as kept")
    parser.add_argument("--work", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    work = options.work.absolute()
    pairs = [(model, seed) for model in options.models for seed in options.seeds]
    benches = [Bench(model, seed, work, options.updates) for model, seed in pairs]
    found: dict[str, Any] = {"schema_version": 1, "environment": environment(), "cells": []}
    kept = work / "spiking" / "latency.json"
    if kept.exists():
        found["latency"] = json.loads(kept.read_text())
    for bench in benches:
        for steps in (None, *options.steps):
            found["cells"].append(bench.cell(steps))
            write_text(options.output, json.dumps(found, indent=1) + "\n")
    if options.latency:
        found["latency"] = measured(benches, kept)
    found["claims"] = spiking_report.claims(found)
    write_text(options.output, json.dumps(found, indent=1) + "\n")
    text = spiking_report.section(found, (__doc__ or "").split("\n\n")[2])
    sys.stdout.write(text + "\n")
    if options.markdown:
        page.write_section(options.markdown, spiking_report.SCRIPT, text)


if __name__ == "__main__":
    main()

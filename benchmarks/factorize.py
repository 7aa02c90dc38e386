"""Low rank and dictionaries at equal stored bytes, on the digits ViT.

    python benchmarks/factorize.py --markdown docs/compress-benchmarks.md    # half an hour

Three seeds of examples/train_digits.py's ViT, factorised (`factorize`) to the same share of their
bytes in three ways: low rank weighed by what enters each layer (svd), plain low rank (svd, not
calibrated), and dense times sparse with the bits of the places counted (dictionary). Nothing is
trained after it. The error of the weights is that of all linears together, that of the outputs of
the logits; both are squared, over the squares of the source's. Accuracy is of the ONNX files in
fp32, on 360 images that nothing was trained or calibrated on, and latency of ONNX Runtime on one
thread, a call of one image in turns with the source's file.

Finished seeds are kept in the work folder: a stopped run goes on there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import digits_models
import page
from torch import nn

from edgekit import targets
from edgekit.compress import Context, apply, layers, measure, parse
from edgekit.errors import EdgekitError
from edgekit.files import write_text
from edgekit.latency import Settings, paired
from edgekit.machine import environment
from edgekit.model import Model
from edgekit.recipe import Recipe
from edgekit.work import Work

RESULT = Path(__file__).parent / "results" / "factorize.json"
SCRIPT = "benchmarks/factorize.py"
RATIOS = (0.2, 0.3, 0.4, 0.6, 0.8)
#: The options of each way.
WAYS = {"svd": {}, "plain svd": {"calibrated": False}, "dictionary": {"method": "dictionary"}}
SETTINGS = {"warmup": 10, "iterations": 200, "seconds": 4.0}
COLUMNS = (
    "bytes asked for",
    "way",
    "bytes counted",
    "ONNX file",
    "error of weights",
    "error of outputs",
    "top-1 %",
    "ms",
    "of the source's",
)


def rows(seed: int, work_folder: Path) -> Iterator[dict[str, Any]]:
    """The figures of the source, then of each share of bytes and way."""
    folder = work_folder / "factorize" / f"vit_{seed}"
    calibration, evaluation = digits_models.images()
    fields = {
        "model": digits_models.trained("vit", seed, work_folder),
        "targets": ["cpu"],
        "calibration": calibration,
        "evaluation": evaluation,
        "seed": seed,
    }
    work = Work(Recipe.check(fields, "factorize"))
    source, first = work.original, folder / "source.onnx"
    yield {"ratio": 1.0, "way": "source", **figures(work, source, first, first)}
    for ratio in RATIOS:
        for way, options in WAYS.items():
            step = parse({"factorize": {"ratio": ratio, **options}})
            row = {"ratio": ratio, "way": way}
            try:
                model = apply(step, source, Context(data=work.datasets[0], seed=seed))
            except EdgekitError as error:
                yield {**row, "failed": f"{error.what} {error.why}"}
                continue
            after = Work(Recipe.check(fields, "factorize"))
            after.original = model
            path = folder / f"{way.replace(' ', '_')}_{ratio}.onnx"
            yield {
                **row,
                **figures(after, source, path, first),
                "weights": weight_error(source, model),
                "outputs": measure.relative_error(source, model, work.datasets[1]),
            }


def figures(work: Work, source: Model, path: Path, first: Path) -> dict[str, Any]:
    """Of a model as an ONNX file, which is made at ``path``."""
    work.single(targets.load("cpu"), "onnx", path)
    settings = Settings(work.batches[0], **SETTINGS)
    ratio = paired(path, first, "onnxruntime", settings, 1)
    whole = layers.stored_bytes(source.module)
    return {
        "bytes": layers.stored_bytes(work.original.module) / whole,
        "file_bytes": path.stat().st_size,
        "file": path.stat().st_size / first.stat().st_size,
        "top1": work.top1(work.run(path, "onnxruntime")),
        "ms": ratio.first_ms,
        "time": ratio.ratio,
        "low": ratio.low,
        "high": ratio.high,
    }


def weight_error(source: Model, model: Model) -> float:
    """Squared distance of all linears' weights, over their squares."""
    wrong = total = 0.0
    for path, layer in source.module.named_modules():
        if isinstance(layer, nn.Linear):
            after = model.module.get_submodule(path)
            weight = after.dense() if hasattr(after, "dense") else after.weight
            wrong += float((weight - layer.weight).detach().double().square().sum())
            total += float(layer.weight.detach().double().square().sum())
    return wrong / total


def table(cells: list[dict[str, Any]]) -> str:
    """One row a share of bytes and way: means over seeds, and from which to which they go."""
    lines = []
    keys = dict.fromkeys((row["ratio"], row["way"]) for cell in cells for row in cell["rows"])
    for key in keys:
        found = [row for cell in cells for row in cell["rows"] if (row["ratio"], row["way"]) == key]
        failed = [row["failed"] for row in found if "failed" in row]
        if failed:
            lines.append((*key, failed[0], *[""] * (len(COLUMNS) - 3)))
            continue
        lines.append(
            (
                *key,
                page.spread([row["bytes"] for row in found], "{:.3f}"),
                page.spread([row["file"] for row in found], "{:.3f}"),
                page.spread([row.get("weights", 0.0) for row in found], "{:.4f}"),
                page.spread([row.get("outputs", 0.0) for row in found], "{:.5f}"),
                page.spread([100 * row["top1"] for row in found]),
                page.spread([row["ms"] for row in found], "{:.3f}"),
                page.spread([row["time"] for row in found]),
            )
        )
    return page.table(COLUMNS, lines)


def section(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    seeds = ", ".join(str(cell["seed"]) for cell in found["cells"])
    parts = [
        f"## Factorised at equal bytes (`python {SCRIPT}`)",
        (__doc__ or "").split("\n\n")[2].replace("\n", " "),
        f"{found['environment']['cpu']}; seeds {seeds}: the mean, and the least and largest.",
        table(found["cells"]),
    ]
    return "\n\n".join(parts)


def main() -> None:
    """Make every cell, save and show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", nargs="*", type=int, default=list(digits_models.SEEDS))
    parser.add_argument("--work", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"schema_version": 1, "environment": environment(), "cells": []}
    for seed in options.seeds:
        kept = options.work.absolute() / "factorize" / f"vit_{seed}" / "rows.json"
        if not kept.exists():
            made = list(rows(seed, options.work.absolute()))
            write_text(kept, json.dumps({"seed": seed, "rows": made}, indent=1))
        found["cells"].append(json.loads(kept.read_text()))
        write_text(options.output, json.dumps(found, indent=1) + "\n")
    sys.stdout.write(section(found) + "\n")
    if options.markdown:
        page.write_section(options.markdown, SCRIPT, section(found))


if __name__ == "__main__":
    main()

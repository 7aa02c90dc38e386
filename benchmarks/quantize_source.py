"""The one fp32 source of a case, in the forms that pipelines take, with its samples."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from quantize_cases import DIGITS, Case, fields_of

from edgekit.data import Dataset, open_data, random_data
from edgekit.files import write_text
from edgekit.find import find
from edgekit.model import Graph, Model, run_module
from edgekit.recipe import Recipe
from edgekit.source import load_model

if TYPE_CHECKING:
    from torch.export import ExportedProgram

OPSET = 20
#: Samples that a model with random weights is judged on.
JUDGED = 8
Samples = dict[str, np.ndarray[Any, Any]]


def write_source(case: Case, folder: Path) -> dict[str, Any]:
    """Write case.json, source.onnx, source.pt2, the samples, expected outputs and labels.

    Returns:
        What the tables tell of the source: seconds of its exports, samples, accuracy.
    """
    fields = fields_of(case)
    model = load_model(Recipe.check(fields, case.name))
    calibration, kept = _data(case, model, fields["samples"])
    own = {name: str(fields[name]) for name in ("model", "checkpoint") if name in fields}
    given = {**own, "random_weights": model.weights == "random"}
    write_text(folder / "case.json", json.dumps(given))
    used = _write(folder / "calibration.npz", calibration)
    expected = _expected(model, _write(folder / "evaluation.npz", kept))
    np.save(folder / "expected.npy", expected)
    top1 = None
    if kept.labels is not None:
        np.save(folder / "labels.npy", np.array(kept.labels))
        top1 = float((expected.argmax(1) == np.array(kept.labels)).mean())
    return {
        "model": fields["model"],
        "weights": model.weights,
        "calibration": len(next(iter(used.values()))),
        "judged": len(expected),
        "source_top1": top1,
        **_exports(model, folder, any(p.runtime == "inductor" for p in case.pipelines)),
    }


def _data(case: Case, model: Model, samples: int) -> tuple[Dataset, Dataset]:
    """What calibrates and what judges: digits, or random images for random weights."""
    if case.trained is None:
        return random_data(model.inputs, samples, 0), random_data(model.inputs, JUDGED, 1)
    folders = (DIGITS / name for name in ("calibration", "evaluation"))
    used, judge = (open_data(folder, model.inputs, model.preprocess) for folder in folders)
    return used.take(samples, 0), judge


def _write(path: Path, samples: Iterable[Samples]) -> Samples:
    rows = list(samples)
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    np.savez(path, **stacked)
    return stacked


def _expected(model: Model, samples: Samples) -> np.ndarray[Any, Any]:
    size = len(next(iter(samples.values())))
    batches = ({name: v[i : i + 1] for name, v in samples.items()} for i in range(size))
    runs = (run_module(model.module, batch, model.outputs) for batch in batches)
    return np.concatenate([run[model.outputs[0]] for run in runs])


def _exports(model: Model, folder: Path, program: bool) -> dict[str, float]:
    """Seconds of torch's own exports, to ONNX and, where it is wanted, to a program."""
    import onnxscript  # noqa: F401 - loaded before the clock
    import torch

    example = {spec.name: torch.zeros(spec.concrete()) for spec in model.inputs}
    start = time.perf_counter()
    plain = _without_our_operators(model)
    if program:
        exported = plain or torch.export.export(model.module, (), example)
        torch.export.save(exported, folder / "source.pt2")
    middle = time.perf_counter()
    torch.onnx.export(
        plain or model.module,
        kwargs=example,
        f=str(folder / "source.onnx"),
        input_names=list(example),
        output_names=list(model.outputs),
        dynamo=True,
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
    return {"export_s": middle - start, "onnx_s": time.perf_counter() - middle}


def _without_our_operators(model: Model) -> ExportedProgram | None:
    """A reference model with its scans written out, since no other tool knows them; else None."""
    if not model.source.startswith("reference/"):
        return None
    graph: Graph = find("rewrites", "scan_by_doubling").rewrite(model.export())
    return graph.exported

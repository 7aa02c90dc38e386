"""edgekit itself, as one more pipeline for child.py; the model is loaded before the clock."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxscript  # noqa: F401 - as the peers' modules, it imports what it uses before the clock
import torch.onnx  # noqa: F401

from edgekit import targets
from edgekit.recipe import Recipe
from edgekit.work import Work

#: The target, and fields of the recipe.
VARIANTS = {
    "fp32": ("cpu", {"precision": "fp32"}),
    "W8A8": ("cpu", {"precision": "int8"}),
    "W8A8 quick": ("cpu", {"precision": "int8", "effort": "quick"}),
    "W8A8 best": ("cpu", {"precision": "int8", "effort": "best"}),
    "W4A8": ("cpu", {"precision": "w4a8"}),
    "W4A8 best": ("cpu", {"precision": "w4a8", "effort": "best"}),
    "fp32 openvino": ("cpu-openvino", {"precision": "fp32"}),
    "W8A8 openvino": ("cpu-openvino", {"precision": "int8"}),
}


def work_of(folder: Path, variant: str) -> Work:
    """The case of a folder as edgekit's work, on the samples that every pipeline gets."""
    target, fields = VARIANTS[variant]
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    data = {name: folder / f"{name}.npz" for name in ("calibration", "evaluation")}
    samples = len(next(iter(np.load(data["calibration"]).values())))
    given = {**case, **data, "samples": samples, "targets": (target,), **fields}
    return Work(Recipe.check(given, f"{folder.name} {variant}"))


def load(folder: Path, variant: str) -> Work:
    """The work with its model and data."""
    work = work_of(folder, variant)
    _ = work.model, work.datasets
    return work


def quantize(work: Work, variant: str, out: Path) -> None:
    """Write one ONNX file, without edgekit's check against the source."""
    target = targets.load(VARIANTS[variant][0])
    quantized = work.quantize() if work.recipe.scheme else None
    work.convert(work.lower(target, quantized), "onnx", out, target)

"""Small real models as ONNX files, with inputs of one call, each made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from edgekit import families, targets
from edgekit.converters import onnx
from edgekit.families import Options
from edgekit.families.references import vision_mamba
from edgekit.model import Model


@dataclass(frozen=True)
class Subject:
    """A model, its ONNX file and the inputs of one call."""

    model: Model
    path: Path
    inputs: dict[str, np.ndarray[Any, Any]]


def _vit() -> Model:
    example = Path(__file__).parents[2] / "examples" / "digits_vit"
    return families.load(f"timm/{example}", Options())


def _crossvit() -> Model:
    # Two branches, of 16 and 9 patches, and one block that crosses.
    arguments = {
        "img_size": 48, "img_scale": [1.0, 1.0], "patch_size": [12, 16], "embed_dim": [16, 32],
        "num_heads": [2, 2], "depth": [[1, 1, 0]], "num_classes": 5,
    }  # fmt: skip
    options = Options(random_weights=True, arguments=arguments)
    return families.load("timm/crossvit_9_240", options)


def _vision_mamba() -> Model:
    torch.manual_seed(0)
    config = vision_mamba.Config((16, 16), (4, 4), classes=10, width=32, depth=1)
    return vision_mamba.make(config)


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    """The subject of a name: vit, crossvit, vision_mamba or mamba."""
    found: dict[str, Subject] = {}

    def mamba() -> Model:
        folder = tiny.save("mamba", tmp_path_factory.mktemp("tiny"))
        return families.load(f"transformers/{folder}", Options())

    makers = {
        "vit": _vit,
        "crossvit": _crossvit,
        "vision_mamba": _vision_mamba,
        "mamba": mamba,
    }

    def get(name: str) -> Subject:
        if name not in found:
            model = makers[name]()
            path = tmp_path_factory.mktemp(name) / "model.onnx"
            onnx.convert(model.export(), path, targets.load("cpu"))
            found[name] = Subject(model, path, _inputs(model))
        return found[name]

    return get


def _inputs(model: Model) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    return {
        spec.name: random.standard_normal(spec.concrete()).astype(spec.dtype)
        if spec.dtype.startswith("float")
        else random.integers(3, 60, spec.concrete())
        for spec in model.inputs
    }

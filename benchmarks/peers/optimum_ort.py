"""Optimum's ORTQuantizer: static, for AVX512-VNNI, per channel."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from onnxruntime.quantization import quant_pre_process
from optimum.onnxruntime import ORTQuantizer
from optimum.onnxruntime.configuration import AutoCalibrationConfig, AutoQuantizationConfig

#: Whether it quantizes Gemm, MatMul and Conv only, as it names them, or every operator it knows.
VARIANTS = {"all": None, "linears": ["Gemm", "MatMul", "Conv"]}


def load(folder: Path, variant: str) -> tuple[Path, Dataset]:
    """The ONNX file, and the samples as a data set."""
    samples = dict(np.load(folder / "calibration.npz"))
    return folder / "source.onnx", Dataset.from_dict(samples).with_format("numpy")


def quantize(source: tuple[Path, Any], variant: str, out: Path) -> None:
    """Write one quantized ONNX file. Without quant_pre_process it cannot tell the shapes."""
    path, samples = source
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        quant_pre_process(str(path), str(folder / "model.onnx"))
        (folder / "config.json").write_text(json.dumps({"model_type": "vit"}), encoding="utf-8")
        quantizer = ORTQuantizer.from_pretrained(folder, file_name="model.onnx")
        settings = AutoQuantizationConfig.avx512_vnni(
            is_static=True, per_channel=True, operators_to_quantize=VARIANTS[variant]
        )
        ranges = quantizer.fit(
            samples,
            AutoCalibrationConfig.minmax(samples),
            onnx_augmented_model_name=str(folder / "augmented.onnx"),
            operators_to_quantize=settings.operators_to_quantize,
        )
        quantizer.quantize(settings, folder / "out", calibration_tensors_range=ranges)
        shutil.move(folder / "out" / "model_quantized.onnx", out)

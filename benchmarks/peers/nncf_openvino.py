"""NNCF's post-training quantization of an OpenVINO model, as its documentation has it for ViTs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    QuantizationParameters,
)

#: Whether the slower bias correction is used, and the bits of a weight.
VARIANTS = {"default": (True, 8), "accurate": (False, 8), "w4": (True, 4)}


def load(folder: Path, variant: str) -> tuple[Path, dict[str, np.ndarray[Any, Any]]]:
    """The ONNX file, and the samples by input name."""
    return folder / "source.onnx", dict(np.load(folder / "calibration.npz"))


def quantize(source: tuple[Path, dict[str, Any]], variant: str, out: Path) -> None:
    """Write one quantized OpenVINO file, .xml with its .bin."""
    fast, bits = VARIANTS[variant]
    samples = source[1]
    size = len(next(iter(samples.values())))
    batches = [{name: v[i : i + 1] for name, v in samples.items()} for i in range(size)]
    advanced = None
    if bits != 8:
        advanced = AdvancedQuantizationParameters(
            weights_quantization_params=QuantizationParameters(num_bits=bits)
        )
    quantized = nncf.quantize(
        openvino.convert_model(source[0]),
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=size,
        fast_bias_correction=fast,
        advanced_parameters=advanced,
    )
    openvino.save_model(quantized, out, compress_to_fp16=False)

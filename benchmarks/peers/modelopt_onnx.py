"""nvidia-modelopt[onnx]: its ONNX quantization, calibrated on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from modelopt.onnx.quantization import quantize as quantize_onnx

#: How ranges are found.
VARIANTS = {"entropy": "entropy", "max": "max"}


def load(folder: Path, variant: str) -> tuple[Path, dict[str, np.ndarray[Any, Any]]]:
    """The ONNX file, and the samples by input name."""
    return folder / "source.onnx", dict(np.load(folder / "calibration.npz"))


def quantize(source: tuple[Path, dict[str, Any]], variant: str, out: Path) -> None:
    """Write one quantized ONNX file; activations and weights are s8, biases stay in float."""
    quantize_onnx(
        str(source[0]),
        quantize_mode="int8",
        calibration_data=source[1],
        calibration_method=VARIANTS[variant],
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(out),
    )

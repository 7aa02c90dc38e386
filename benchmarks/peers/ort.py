"""onnxruntime.quantization: quant_pre_process, then quantize_static as QDQ, per channel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import (
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)

#: Activation type, weight type, the linears only or every operator it knows, range method.
VARIANTS = {
    "u8 all": (QuantType.QUInt8, QuantType.QInt8, False, CalibrationMethod.MinMax),
    "s8 all": (QuantType.QInt8, QuantType.QInt8, False, CalibrationMethod.MinMax),
    "u8 linears": (QuantType.QUInt8, QuantType.QInt8, True, CalibrationMethod.MinMax),
    "s8 linears": (QuantType.QInt8, QuantType.QInt8, True, CalibrationMethod.MinMax),
    "u8 entropy": (QuantType.QUInt8, QuantType.QInt8, True, CalibrationMethod.Entropy),
    "u8 percentile": (QuantType.QUInt8, QuantType.QInt8, True, CalibrationMethod.Percentile),
    "s4 linears": (QuantType.QInt8, QuantType.QInt4, True, CalibrationMethod.MinMax),
}
LINEARS = ["MatMul", "Gemm", "Conv"]


def load(folder: Path, variant: str) -> tuple[Path, dict[str, np.ndarray[Any, Any]]]:
    """The ONNX file, and the samples by input name."""
    return folder / "source.onnx", dict(np.load(folder / "calibration.npz"))


def quantize(source: tuple[Path, dict[str, Any]], variant: str, out: Path) -> None:
    """Write one quantized ONNX file."""
    activations, weights, linears, method = VARIANTS[variant]
    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(str(source[0]), str(prepared))
    quantize_static(
        str(prepared),
        str(out),
        Reader(source[1]),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=LINEARS if linears else None,
        per_channel=True,
        activation_type=activations,
        weight_type=weights,
        calibrate_method=method,
        extra_options={
            "ActivationSymmetric": activations == QuantType.QInt8,
            "WeightSymmetric": True,
            "MatMulConstBOnly": linears,
        },
    )
    prepared.unlink()


class Reader:
    """Samples as onnxruntime reads them: one a call, with a batch of one."""

    def __init__(self, samples: dict[str, np.ndarray[Any, Any]]) -> None:
        self._samples = self._each(samples)

    def get_next(self) -> dict[str, Any] | None:
        """The next sample, or None."""
        return next(self._samples, None)

    @staticmethod
    def _each(samples: dict[str, np.ndarray[Any, Any]]) -> Iterator[dict[str, Any]]:
        for index in range(len(next(iter(samples.values())))):
            yield {name: values[index : index + 1] for name, values in samples.items()}

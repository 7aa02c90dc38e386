"""Quantization as ONNX writes it: what the exporter makes of each quantize and dequantize.

A scale has the dtype of the float side, as opset 19 and later ask. ``out_dtype`` arrives as ONNX's
own number; 1, or none, is float32.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def table(native: Collection[str]) -> dict[Any, Any]:
    """What makes ONNX operators of ours and of torch's, by operator.

    Args:
        native: names of our operators that the runtime has kernels of its own for.
    """
    import torch
    from torch.ao.quantization.fx import _decomposed  # noqa: F401 - registers the operators

    from edgekit.converters import onnx_scan
    from edgekit.quantize import operators  # noqa: F401 - registers ours

    torchs, ours = torch.ops.quantized_decomposed, torch.ops.edgekit
    return {
        torchs.quantize_per_tensor.default: _quantize,
        torchs.dequantize_per_tensor.default: _dequantize,
        torchs.dequantize_per_channel.default: _dequantize_channels,
        ours.dequantize_groups.default: _dequantize_groups,
        ours.quantize_fp8.default: _quantize_fp8,
        ours.dequantize_fp8.default: _dequantize_fp8,
        **onnx_scan.table(native),
    }


def _quantize(x: Any, scale: float, zero_point: int, low: int, high: int, dtype: int) -> Any:
    from onnxscript import opset20 as op

    return op.QuantizeLinear(x, _number(scale, x.dtype), _zero(zero_point, low))


def _dequantize(
    x: Any, scale: float, zero_point: int, low: int, high: int, dtype: int, out_dtype: int = 1
) -> Any:
    from onnxscript import opset20 as op

    return op.DequantizeLinear(x, _number(scale, out_dtype), _zero(zero_point, low))


def _dequantize_channels(
    x: Any,
    scales: Any,
    zeros: Any,
    axis: int,
    low: int,
    high: int,
    dtype: int,
    out_dtype: int = 1,
) -> Any:
    from onnxscript import opset20, opset21

    from edgekit.quantize.place import INT4

    if x.name.endswith(INT4):
        return opset21.DequantizeLinear(x, _typed(scales, out_dtype), axis=axis)
    return opset20.DequantizeLinear(x, _typed(scales, out_dtype), zeros, axis=axis)


def _dequantize_groups(x: Any, scales: Any, axis: int, out_dtype: int = 1) -> Any:
    from onnxscript import opset21 as op

    size = x.shape[axis] // scales.shape[axis]
    return op.DequantizeLinear(x, _typed(scales, out_dtype), axis=axis, block_size=size)


def _quantize_fp8(x: Any, scale: float) -> Any:
    import onnx_ir as ir
    from onnxscript import opset20 as op

    zero = ir.tensor([0.0], dtype=ir.DataType.FLOAT8E4M3FN).numpy()[0]
    return op.QuantizeLinear(x, _number(scale, x.dtype), op.Constant(value=ir.tensor(zero)))


def _dequantize_fp8(x: Any, scales: Any, axis: int, out_dtype: int = 1) -> Any:
    from onnxscript import opset20 as op

    return op.DequantizeLinear(x, _typed(scales, out_dtype), axis=axis)


def _number(value: float, dtype: Any) -> Any:
    """A constant of the right type: each cast would cost the exporter's optimiser time."""
    import onnx_ir as ir
    from onnxscript import opset20 as op

    typed = ir.tensor([value], dtype=ir.DataType(dtype or 1)).numpy()[0]
    return op.Constant(value=ir.tensor(typed))


def _zero(zero_point: int, low: int) -> Any:
    import onnx_ir as ir
    from onnxscript import opset20 as op

    dtype = ir.DataType.INT8 if low < 0 else ir.DataType.UINT8
    return op.Constant(value=ir.tensor(ir.tensor([zero_point], dtype=dtype).numpy()[0]))


def _typed(scales: Any, dtype: Any) -> Any:
    from onnxscript import opset20 as op

    return scales if dtype in (None, 1) else op.Cast(scales, to=dtype)

"""sparse_codes: the bits of the places taken apart, and the values scattered to them.

Runtimes do it once, as they load a model, since it depends on no input. The exporter must not: the
file would hold the matrix. It folds nothing behind a ConstantOfShape.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.converters.onnx_scan import constant
from edgekit.operators.sparse_codes import bits


def portable(values: Any, packed: Any, atoms: int) -> Any:
    """``edgekit::sparse_codes`` for any runtime."""
    import onnx_ir as ir
    from onnxscript import opset20 as op

    rows, each = values.shape
    width = bits(atoms)
    first = op.ConstantOfShape(constant([1]), value=ir.tensor(np.zeros(1, np.int64)))
    whole = op.Slice(packed, first, constant([packed.shape[0]]))
    bytes_ = op.Cast(whole, to=int(ir.DataType.INT32))
    shifted = op.Div(op.Unsqueeze(bytes_, constant([1])), _powers(8))
    ones = op.Reshape(op.Mod(shifted, constant(np.full(1, 2, np.int32))), constant([-1]))
    used = op.Slice(ones, constant([0]), constant([rows * each * width]))
    parts = op.Mul(op.Reshape(used, constant([rows * each, width])), _powers(width))
    places = op.Reshape(op.ReduceSum(parts, constant([1])), constant([rows, each]))
    zero = ir.tensor(np.zeros(1, values.dtype.numpy()))
    zeros = op.ConstantOfShape(constant([rows, atoms]), value=zero)
    return op.ScatterElements(zeros, op.Cast(places, to=int(ir.DataType.INT64)), values, axis=1)


def _powers(count: int) -> Any:
    """2^(count - 1), ..., 2, 1"""
    return constant(np.array([2**place for place in reversed(range(count))], np.int32))

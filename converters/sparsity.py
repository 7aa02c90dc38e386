"""Sparsity of an ONNX file: products whose constant weights are sparse 2:4 along their inputs.

TensorRT runs them on sparse tensor cores where the builder flag SPARSE_WEIGHTS allows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.compress.sparsity import is_sparse

if TYPE_CHECKING:
    import numpy as np
    import onnx

#: What stands between a stored weight and the product that reads it.
_BETWEEN = {"Cast", "DequantizeLinear", "Identity", "Transpose"}


def weights(model: onnx.ModelProto, folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The constant weight of each product and convolution by its node's name, (out, in, ...).

    Levels of a quantized weight are given as they are stored.

    Args:
        folder: where the model's external data is.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            array = _array(node.input[1], makers, stored, folder)
            if array is not None and (array.ndim == 2 or node.op_type == "Conv"):
                found[node.name] = array if _outputs_first(node) else array.T
    return found


def sparse(model: onnx.ModelProto, folder: Path) -> list[str]:
    """The names of the nodes whose weights are sparse 2:4."""
    return [name for name, weight in weights(model, folder).items() if is_sparse(weight)]


def _array(
    name: str, makers: Mapping[str, Any], stored: Mapping[str, Any], folder: Path
) -> np.ndarray[Any, Any] | None:
    """The constant that a value is, or None."""
    from onnx import numpy_helper

    if name in stored:
        return numpy_helper.to_array(stored[name], base_dir=str(folder))
    maker = makers.get(name)
    if maker is None or maker.op_type not in _BETWEEN:
        return None
    array = _array(maker.input[0], makers, stored, folder)
    if array is None or maker.op_type != "Transpose":
        return array
    order = next((list(a.ints) for a in maker.attribute if a.name == "perm"), None)
    return array.transpose(order)


def _outputs_first(node: Any) -> bool:
    """Whether a node's weight has its outputs on axis 0."""
    return node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)

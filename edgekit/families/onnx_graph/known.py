"""Operators on known values, in NumPy; arrays of objects hold symbolic sizes."""

from __future__ import annotations

import operator as python
from collections.abc import Callable
from typing import Any

import numpy as np

from edgekit.families.onnx_graph.table import Known, ints, shortcut

_BINARY: dict[str, Callable[..., Any]] = {
    "Add": python.add,
    "Sub": python.sub,
    "Mul": python.mul,
    "Equal": python.eq,
    "Greater": python.gt,
    "GreaterOrEqual": python.ge,
    "Less": python.lt,
    "LessOrEqual": python.le,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Not": np.logical_not,
    "Neg": python.neg,
    "Identity": lambda x: x,
    "Floor": lambda x: x if x.dtype == object else np.floor(x),
    "Ceil": lambda x: x if x.dtype == object else np.ceil(x),
    "Sqrt": lambda x: NotImplemented if x.dtype == object else np.sqrt(x),
}


def _elementwise(name: str, function: Callable[..., Any]) -> None:
    @shortcut(name)
    def run(*inputs: Known) -> Any:
        result = function(*inputs)
        # An operator on 0-d arrays gives a NumPy scalar, or a symbol.
        return result if result is NotImplemented else _zero_d(result)


def _zero_d(value: Any) -> Known:
    if isinstance(value, (np.ndarray, np.generic, int, float)):
        return np.asarray(value)
    array = np.empty((), dtype=object)
    array[()] = value
    return array


for _name, _function in _BINARY.items():
    _elementwise(_name, _function)


@shortcut("Div")
def _divide(a: Known, b: Known) -> Known:
    if a.dtype.kind == "f":
        return _zero_d(a / b)
    if a.dtype == object or b.dtype == object:  # sizes are never negative
        return _zero_d(a // b)
    return _zero_d(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)))


@shortcut("Mod")
def _mod(a: Known, b: Known, fmod: int = 0) -> Known:
    return _zero_d(np.fmod(a, b) if fmod else a % b)


@shortcut("Min")
def _least(*values: Known) -> Any:
    return _extreme(np.minimum, values)


@shortcut("Max")
def _greatest(*values: Known) -> Any:
    return _extreme(np.maximum, values)


def _extreme(function: Any, values: tuple[Known, ...]) -> Any:
    if any(value.dtype == object for value in values):
        return NotImplemented
    result = values[0]
    for value in values[1:]:
        result = function(result, value)
    return np.asarray(result)


@shortcut("Where")
def _where(condition: Known, a: Known, b: Known) -> Any:
    return NotImplemented if condition.dtype == object else np.where(condition, a, b)


@shortcut("Cast")
def _cast(x: Known, to: int, saturate: int = 1) -> Any:
    import onnx

    if x.dtype == object:
        return x if to in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) else NotImplemented
    return x.astype(onnx.helper.tensor_dtype_to_np_dtype(to))


@shortcut("Concat")
def _concat(*values: Known, axis: int) -> Known:
    return np.concatenate(values, axis)


@shortcut("Gather")
def _gather(x: Known, indices: Known, axis: int = 0) -> Any:
    return NotImplemented if indices.dtype == object else _zero_d(np.take(x, indices, axis))


@shortcut("Slice")
def _slice(x: Known, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    bounds = [ints(np.asarray(bound)) for bound in (starts, ends)]
    count = len(bounds[0])
    places = ints(np.asarray(axes)) if axes is not None else list(range(count))
    strides = ints(np.asarray(steps)) if steps is not None else [1] * count
    if not all(isinstance(value, int) for bound in bounds for value in bound):
        return NotImplemented
    cut = [slice(None)] * x.ndim
    for start, end, axis, step in zip(*bounds, places, strides, strict=True):
        whole = step < 0 and end < -x.shape[axis]  # down to and with the first
        cut[axis] = slice(start, None if whole else end, step)
    return x[tuple(cut)]


@shortcut("Squeeze")
def _squeeze(x: Known, axes: Any = None) -> Known:
    return np.squeeze(x, tuple(ints(np.asarray(axes))) if axes is not None else None)


@shortcut("Unsqueeze")
def _unsqueeze(x: Known, axes: Any) -> Known:
    return np.expand_dims(x, tuple(ints(np.asarray(axes))))


@shortcut("Reshape")
def _reshape(x: Known, shape: Known, allowzero: int = 0) -> Any:
    sizes = ints(shape)
    if shape.dtype == object or (0 in sizes and allowzero):
        return NotImplemented
    return x.reshape([size or x.shape[axis] for axis, size in enumerate(sizes)])


@shortcut("Transpose")
def _transpose(x: Known, perm: Any = None) -> Known:
    return np.transpose(x, perm)


@shortcut("Expand")
def _expand(x: Known, shape: Known) -> Any:
    if shape.dtype == object:
        return NotImplemented
    sizes = np.broadcast_shapes(x.shape, tuple(ints(shape)))
    return np.ascontiguousarray(np.broadcast_to(x, sizes))


@shortcut("Tile")
def _tile(x: Known, repeats: Known) -> Any:
    return NotImplemented if repeats.dtype == object else np.tile(x, ints(repeats))


@shortcut("Range")
def _range(start: Known, limit: Known, delta: Known) -> Any:
    bounds = [value.item() for value in (start, limit, delta)]
    if any(value.dtype == object for value in (start, limit, delta)):
        return NotImplemented
    return np.arange(*bounds, dtype=start.dtype)


@shortcut("ConstantOfShape")
def _constant_of_shape(shape: Known, value: Known | None = None) -> Any:
    if shape.dtype == object:
        return NotImplemented
    fill = np.zeros(1, np.float32) if value is None else value
    return np.full(ints(shape), fill[0], fill.dtype)


@shortcut("NonZero")
def _nonzero(x: Known) -> Any:
    return NotImplemented if x.dtype == object else np.stack(np.nonzero(x)).astype(np.int64)


@shortcut("Split")
def _split(x: Known, split: Any = None, axis: int = 0, num_outputs: int = 0, count: int = 1) -> Any:
    if split is None:
        return NotImplemented
    return tuple(np.split(x, np.cumsum(ints(np.asarray(split)))[:-1], axis))


@shortcut("ReduceProd")
def _product(x: Known, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
    return _reduced(np.multiply, x, axes, keepdims)


@shortcut("ReduceSum")
def _sum(x: Known, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
    return _reduced(np.add, x, axes, keepdims)


def _reduced(function: Any, x: Known, axes: Any, keepdims: int) -> Any:
    if axes is None:
        return _zero_d(function.reduce(x, None, keepdims=bool(keepdims)))
    places = tuple(ints(np.asarray(axes)))
    return (
        _zero_d(function.reduce(x, places, keepdims=bool(keepdims))) if places else NotImplemented
    )

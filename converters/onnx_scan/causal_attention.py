"""causal_attention: products and a softmax, of any length.

The products are in the dtype of the inputs and the softmax is in float32: what TensorRT fuses.
Heads that share keys are rows of one product, so that keys are not repeated. ONNX Runtime's own
operator holds no T x S scores; beside a cache it is slower than the products, and is not used.
"""

from __future__ import annotations

from typing import Any

from edgekit.converters.onnx_scan import constant, like, record, wide

_INT32 = 6


def portable(query: Any, key: Any, value: Any, scale: float, window: int | None = None) -> Any:
    """``edgekit::causal_attention`` for any runtime."""
    import numpy as np
    from onnxscript import opset20 as op

    (heads, _, size), groups = query.shape[1:], key.shape[1]
    factor = constant(np.array(scale, query.dtype.numpy()))
    q = op.Reshape(op.Mul(query, factor), constant([0, groups, -1, size]))
    (scores,) = wide(op.MatMul(q, op.Transpose(key, perm=[0, 1, 3, 2])))
    hidden = _hidden(query, key, heads // groups, window)
    never = constant(np.array(-np.inf, np.float32))
    weights = op.Softmax(op.Where(hidden, never, scores), axis=-1)
    y = op.MatMul(like(weights, value), value)
    return op.Reshape(y, constant([0, heads, -1, value.shape[3]]))


def _hidden(query: Any, key: Any, shared: int, window: int | None) -> Any:
    """Which keys a query does not see, (shared * T, S)."""
    from onnxscript import opset20 as op

    rows, columns = op.Shape(query, start=2, end=3), op.Shape(key, start=2, end=3)
    end, one = op.Squeeze(columns), constant(1)
    at = op.Range(op.Squeeze(op.Sub(columns, rows)), end, one)
    at = op.Unsqueeze(op.Concat(*[at] * shared, axis=0), constant([1]))
    column = op.Range(constant(0), end, one)
    hidden = op.Greater(column, at)
    if window is not None:
        hidden = op.Or(hidden, op.LessOrEqual(column, op.Sub(at, constant(window))))
    return hidden


def native(query: Any, key: Any, value: Any, scale: float, window: int | None = None) -> Any:
    """``edgekit::causal_attention`` for ONNX Runtime: its GroupQueryAttention, without a cache."""
    from onnxscript import opset20 as op

    size, alone = query.shape[3], query.shape[2] == key.shape[2]
    if not alone or size != value.shape[3]:
        return portable(query, key, value, scale, window)
    heads, groups = query.shape[1], key.shape[1]
    flat = [
        op.Reshape(op.Transpose(each, perm=[0, 2, 1, 3]), constant([0, 0, count * size]))
        for each, count in zip(wide(query, key, value), (heads, groups, groups), strict=True)
    ]
    total = op.Shape(key, start=2, end=3)
    last = op.Cast(op.Sub(total, constant([1])), to=_INT32)
    lasts = op.Expand(last, op.Shape(query, start=0, end=1))
    attributes = {
        "num_heads": heads,
        "kv_num_heads": groups,
        "scale": scale,
        "local_window_size": -1 if window is None else window,
    }
    inputs = [*flat, None, None, lasts, op.Cast(op.Squeeze(total), to=_INT32)]
    y, *_ = record("com.microsoft", "GroupQueryAttention", inputs, 3, attributes)
    y = op.Reshape(y, constant([0, 0, heads, size]))
    return like(op.Transpose(y, perm=[0, 2, 1, 3]), query)

"""mamba_scan: a Scan over time, six nodes a step, all over contiguous channels."""

from __future__ import annotations

from typing import Any

from edgekit.converters.onnx_scan import by_batch, by_time, like, scan, wide


def portable(x: Any, delta: Any, A: Any, B: Any, C: Any, state: Any) -> tuple[Any, Any]:
    """``edgekit::mamba_scan`` for any runtime."""
    from onnxscript import opset20 as op

    values, step, a, b, c, start = wide(x, delta, A, B, C, state)
    rates = op.Transpose(a, perm=[1, 0])

    def body(h: Any, step: Any, value: Any, b: Any, c: Any) -> tuple[Any, Any]:
        kept = op.Mul(op.Exp(op.Mul(step, rates)), h)
        h = op.Add(kept, op.MatMul(b, value))  # an outer product, faster so than by broadcasting
        return h, op.MatMul(c, h)

    batch, (d, n) = x.shape[0], A.shape
    rows = [
        by_time(step, batch, 1, d),
        by_time(op.Mul(step, values), batch, 1, d),
        by_time(b, batch, n, 1),
        by_time(c, batch, 1, n),
    ]
    last, y = scan(body, [start], rows)
    return by_batch(y, x), like(last, state)

"""linear_scan: a Scan over time, a product and a sum a step."""

from __future__ import annotations

from typing import Any

from edgekit.converters.onnx_scan import by_batch, by_time, like, scan, wide


def portable(x: Any, decay: Any, state: Any) -> tuple[Any, Any]:
    """``edgekit::linear_scan`` for any runtime."""
    from onnxscript import opset20 as op

    values, kept, start = wide(x, decay, state)

    def body(h: Any, kept: Any, value: Any) -> tuple[Any, Any]:
        # Stacked is what a step starts from: OpenVINO 2026.4 stacks wrong what it also carries.
        return op.Add(op.Mul(kept, h), value), op.Identity(h)

    batch, _, size = x.shape
    rows = [by_time(each, batch, size) for each in (kept, values)]
    last, before = scan(body, [start], rows)
    y = op.Add(op.Mul(rows[0], before), rows[1])
    return by_batch(y, x), like(last, state)

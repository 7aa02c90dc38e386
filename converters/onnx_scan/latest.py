"""latest: a slice, whose start a runtime moves to 0 where there are fewer positions."""

from __future__ import annotations

from typing import Any

from edgekit.converters.onnx_scan import constant

_END = 2**31 - 1


def portable(x: Any, count: int) -> Any:
    """``edgekit::latest`` for any runtime."""
    from onnxscript import opset20 as op

    return op.Slice(x, constant([-count]), constant([_END]), constant([2]))

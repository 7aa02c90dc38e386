"""fire: a Scan over time, whose steps are a product, a sum, a comparison and a reset.

    u[t] = decay s[t-1] + gain x[t],    spike[t] = u[t] >= threshold
    s[t] = u[t] - threshold spike[t]  (soft)   or   u[t] (1 - spike[t])  (hard)

All input is multiplied by its gain at once, outside.
"""

from __future__ import annotations

from typing import Any

from edgekit.converters.onnx_scan import FLOAT, by_batch, by_time, constant, like, scan, wide


def portable(
    x: Any,
    decay: Any,
    gain: Any,
    threshold: Any,
    state: Any,
    hard: bool,
    surrogate: str,
    width: float,
) -> tuple[Any, Any]:
    """``edgekit::fire`` for any runtime; the surrogate is for training only."""
    import numpy as np
    from onnxscript import opset20 as op

    values, kept, gains, level, start = wide(x, decay, gain, threshold, state)

    def body(s: Any, pushed: Any) -> tuple[Any, Any]:
        potential = op.Add(op.Mul(kept, s), pushed)
        spike = op.Cast(op.GreaterOrEqual(potential, level), to=FLOAT)
        if hard:
            after = op.Mul(potential, op.Sub(constant(np.float32(1)), spike))
        else:
            after = op.Sub(potential, op.Mul(level, spike))
        return after, spike

    batch, _, size = x.shape
    last, spikes = scan(body, [start], [by_time(op.Mul(gains, values), batch, size)])
    return by_batch(spikes, x), like(last, state)

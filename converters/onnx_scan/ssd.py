"""ssd: matrices within a chunk, a Scan across chunks (Dao and Gu, 2024, section 6).

With c the rows of C, B and x in one chunk, D what is kept from one step to another and d from the
chunk's start to a step, the chunk's outputs are  (C B^T * D) x + d C state  and the next state is
d[last] state + B^T (D[last] x).
"""

from __future__ import annotations

from typing import Any

from edgekit.converters.onnx_scan import constant, like, record, scan, wide
from edgekit.converters.onnx_scan.chunks import Chunks, decays, last_row, lower, turned

#: Steps in a chunk.
SIZE = 32


def portable(x: Any, decay: Any, B: Any, C: Any, state: Any) -> tuple[Any, Any]:
    """``edgekit::ssd`` for any runtime."""
    from onnxscript import opset20 as op

    values, log, keys, queries, start = wide(x, decay, B, C, state)
    (heads, p), (groups, n) = x.shape[2:], B.shape[2:]
    shared = heads // groups
    chunks = Chunks(x, SIZE)
    v = chunks.cut(values, groups, shared, p)  # chunks b g heads size p
    k, q = (chunks.cut(each, groups, 1, n) for each in (keys, queries))
    since, between = decays(chunks.cut(log, groups, shared, 1), chunks.size)
    keys_across = turned(k, 6)
    seen = op.Mul(op.MatMul(q, keys_across), lower(chunks.size))
    within = op.MatMul(op.Mul(seen, between), v)
    left = op.Mul(turned(last_row(between, chunks.size), 6), v)

    def body(s: Any, kept: Any, keys: Any, left: Any, q: Any) -> tuple[Any, Any]:
        return op.Add(op.Mul(kept, s), op.MatMul(keys, left)), op.MatMul(q, s)

    grouped = op.Reshape(start, constant([0, groups, shared, n, p]))
    rows = [last_row(since, chunks.size), keys_across, left, q]
    last, before = scan(body, [grouped], rows)
    y = op.Add(within, op.Mul(since, before))
    last = op.Reshape(last, constant([0, heads, n, p]))
    return like(chunks.join(y, (heads, p), heads=2), x), like(last, state)


def native(x: Any, decay: Any, B: Any, C: Any, state: Any) -> tuple[Any, Any]:
    """``edgekit::ssd`` for ONNX Runtime: its LinearAttention, whose queries may be shared."""
    from onnxscript import opset20 as op

    values, log, keys, queries, start = wide(x, decay, B, C, state)
    (heads, p), (groups, n) = x.shape[2:], B.shape[2:]
    if groups != heads:
        each = op.Unsqueeze(keys, constant([3]))
        keys = op.Expand(each, constant([1, 1, 1, heads // groups, 1]))
    q, k, v = (
        op.Reshape(part, constant([0, 0, size]))
        for part, size in ((queries, groups * n), (keys, heads * n), (values, heads * p))
    )
    attributes = {
        "update_rule": "gated",
        "scale": 1.0,
        "q_num_heads": groups,
        "kv_num_heads": heads,
    }
    y, last = record("com.microsoft", "LinearAttention", [q, k, v, start, log], 2, attributes)
    return like(op.Reshape(y, constant([0, 0, heads, p])), x), like(last, state)

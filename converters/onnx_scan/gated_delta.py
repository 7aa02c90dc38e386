"""gated_delta: matrices within a chunk, a Scan across chunks (Yang et al., 2024, section 3.3).

In one chunk, with D what is kept from one step to another, d from the chunk's start to a step, and
b the rates, the changes U solve  (I + N) U = b V - b d K state,  N = b (K K^T * D) below the
diagonal. The outputs are  d Q state + (Q K^T * D) U  and the next state is
d[last] state + (D[last] K)^T U.
"""

from __future__ import annotations

from typing import Any

from edgekit.converters.onnx_scan import constant, like, record, scan, wide
from edgekit.converters.onnx_scan.chunks import Chunks, decays, last_row, lower, turned

#: Steps in a chunk.
SIZE = 32


def portable(
    query: Any, key: Any, value: Any, decay: Any, beta: Any, state: Any
) -> tuple[Any, Any]:
    """``edgekit::gated_delta`` for any runtime."""
    from onnxscript import opset20 as op

    wider = wide(query, key, value, decay, beta, state)
    heads, size_k, size_v = query.shape[2], query.shape[3], value.shape[3]
    chunks = Chunks(query, SIZE)
    q, k, v, log, rate = (
        chunks.cut(each, heads, size)
        for each, size in zip(wider, (size_k, size_k, size_v, 1, 1), strict=False)
    )  # chunks b h size m
    since, between = decays(log, chunks.size)
    keys_across = turned(k, 5)
    mixed = op.Mul(op.Mul(op.MatMul(k, keys_across), between), rate)
    solved = _inverse(mixed, chunks.size)
    new = op.MatMul(solved, op.Mul(rate, v))
    old = op.MatMul(solved, op.Mul(op.Mul(rate, since), k))
    seen = op.Mul(op.Mul(op.MatMul(q, keys_across), between), lower(chunks.size))
    kept_keys = turned(op.Mul(turned(last_row(between, chunks.size), 5), k), 5)

    def body(s: Any, kept: Any, new: Any, old: Any, keys: Any, q: Any) -> tuple[Any, Any, Any]:
        change = op.Sub(new, op.MatMul(old, s))
        return op.Add(op.Mul(kept, s), op.MatMul(keys, change)), change, op.MatMul(q, s)

    rows = [last_row(since, chunks.size), new, old, kept_keys, op.Mul(since, q)]
    last, changes, before = scan(body, [wider[5]], rows)
    y = op.Add(before, op.MatMul(seen, changes))
    return like(chunks.join(y, (heads, size_v), heads=1), value), like(last, state)


def _inverse(mixed: Any, size: int) -> Any:
    """(I + N)^-1, N being ``mixed`` below its diagonal.

    By blocks that double: the inverse X of the diagonal blocks becomes that of blocks twice as
    large by X - X N' X, N' being N between two neighbours. It is as stable as substitution row by
    row; the product (I - N)(I + N^2)(I + N^4)... is not: where keys repeat, its powers overflow.
    """
    import numpy as np
    from onnxscript import opset20 as op

    inverse, width, row = constant(np.eye(size, dtype=np.float32)), 1, np.arange(size)
    while width < size:
        block = row // width
        below = (block[:, None] == block[None] + 1) & (block[None] % 2 == 0)
        part = op.Mul(mixed, constant(below.astype(np.float32)))
        if width > 1:
            part = op.MatMul(op.MatMul(inverse, part), inverse)
        inverse, width = op.Sub(inverse, part), 2 * width
    return inverse


def native(query: Any, key: Any, value: Any, decay: Any, beta: Any, state: Any) -> tuple[Any, Any]:
    """``edgekit::gated_delta`` for ONNX Runtime: its LinearAttention."""
    from onnxscript import opset20 as op

    wider = wide(query, key, value, decay, beta, state)
    heads, size = value.shape[2:]
    flat = [op.Reshape(each, constant([0, 0, heads * each.shape[3]])) for each in wider[:3]]
    attributes = {
        "update_rule": "gated_delta",
        "scale": 1.0,
        "q_num_heads": heads,
        "kv_num_heads": heads,
    }
    inputs = [*flat, wider[5], wider[3], wider[4]]
    y, last = record("com.microsoft", "LinearAttention", inputs, 2, attributes)
    return like(op.Reshape(y, constant([0, 0, heads, size])), value), like(last, state)

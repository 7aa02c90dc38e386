"""lmu: constant matrices within a chunk, a Scan across chunks (Chilkuri and Eliasmith, 2021).

The memory i steps into a chunk is  A^(i+1) memory + sum_j A^(i-j) B x[j],  the powers of A and
their products with B being constants, which runtimes compute once.
"""

from __future__ import annotations

from typing import Any

from edgekit.converters.onnx_scan import constant, like, scan, wide
from edgekit.converters.onnx_scan.chunks import Chunks

#: Steps in a chunk.
SIZE = 32


def portable(x: Any, A: Any, B: Any, state: Any) -> tuple[Any, Any]:
    """``edgekit::lmu`` for any runtime."""
    from onnxscript import opset20 as op

    values, a, b, start = wide(x, A, B, state)
    n, channels = A.shape[0], x.shape[2]
    chunks = Chunks(x, SIZE)
    powers = _powers(a, n, chunks.size)
    response = _response(powers, b, n, chunks.size)
    new = op.MatMul(response, chunks.cut(values, channels))  # chunks b size*n d
    leap, left = _end(powers, chunks.size, n, 0), _end(new, chunks.size, n, 2)

    def body(memory: Any, left: Any) -> tuple[Any, Any]:
        return op.Add(op.MatMul(leap, memory), left), op.Identity(memory)

    _, before = scan(body, [start], [left])
    memory = op.Add(new, op.MatMul(powers, before))
    memory = op.Reshape(op.Transpose(memory, perm=[1, 0, 2, 3]), constant([0, -1, n, channels]))
    memory = op.Slice(memory, constant([0]), chunks.length, constant([1]))
    last = op.Gather(memory, constant(-1), axis=1)
    return like(memory, x), like(last, state)


def _powers(a: Any, n: int, size: int) -> Any:
    """A^1 to A^size, one below the other (size*n, n), doubled until they are enough."""
    from onnxscript import opset20 as op

    stacked, count = a, 1
    while count < size:
        more = op.MatMul(stacked, _end(stacked, count, n, 0))
        stacked, count = op.Concat(stacked, more, axis=0), 2 * count
    return op.Slice(stacked, constant([0]), constant([size * n]), constant([0]))


def _response(powers: Any, b: Any, n: int, size: int) -> Any:
    """What x at each step of a chunk adds to the memory at each, (size*n, size)."""
    import numpy as np
    from onnxscript import opset20 as op

    columns = op.Concat(b, op.MatMul(powers, b), constant(np.zeros(n, np.float32)), axis=0)
    columns = op.Reshape(columns, constant([size + 2, n]))  # A^i B, and zeros at the end
    steps = np.arange(size)
    elapsed = steps[:, None] - steps
    added = op.Gather(columns, constant(np.where(elapsed < 0, size + 1, elapsed)), axis=0)
    return op.Reshape(op.Transpose(added, perm=[0, 2, 1]), constant([size * n, size]))


def _end(value: Any, count: int, n: int, axis: int) -> Any:
    """The last of ``count`` blocks of n rows."""
    from onnxscript import opset20 as op

    start, end = constant([(count - 1) * n]), constant([count * n])
    return op.Slice(value, start, end, constant([axis]))

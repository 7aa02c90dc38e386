"""Time in chunks of one size, the last filled up with zeros: any length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit.converters.onnx_scan import constant


class Chunks:
    """How the length of ``source`` (b, L, ...) is cut.

    Attributes:
        size: of a chunk; a known length below ``most`` is one chunk.
    """

    def __init__(self, source: Any, most: int) -> None:
        from onnxscript import opset20 as op

        known = source.shape[1]
        self.size = min(most, known) if isinstance(known, int) else most
        self.length = op.Shape(source, start=1, end=2)
        self._missing = op.Mod(op.Neg(self.length), constant([self.size]))

    def cut(self, value: Any, *sizes: int) -> Any:
        """(b, L, ...) as (chunks, b, heads..., size, m), where ``sizes`` are (heads..., m)."""
        import numpy as np
        from onnxscript import opset20 as op

        heads = len(sizes) - 1
        batch = op.Shape(value, start=0, end=1)
        rest = constant([int(size) for size in value.shape[2:]])
        # Not a Pad: ONNX cannot convert one to the opset of JetPack 5.
        missing = op.Expand(
            constant(np.zeros(1, np.float32)), op.Concat(batch, self._missing, rest, axis=0)
        )
        full = op.Concat(value, missing, axis=1)
        parts = op.Reshape(full, constant([0, -1, self.size, *sizes]))
        return op.Transpose(parts, perm=[1, 0, *range(3, 3 + heads), 2, 3 + heads])

    def join(self, value: Any, sizes: Sequence[int], heads: int) -> Any:
        """(chunks, b, ``heads`` axes, size, m) as (b, L, ``sizes``)."""
        from onnxscript import opset20 as op

        axes = [1, 0, 2 + heads, *range(2, 2 + heads), 3 + heads]
        joined = op.Reshape(op.Transpose(value, perm=axes), constant([0, -1, *sizes]))
        return op.Slice(joined, constant([0]), self.length, constant([1]))


def turned(value: Any, rank: int) -> Any:
    """The last two of ``rank`` axes exchanged."""
    from onnxscript import opset20 as op

    return op.Transpose(value, perm=[*range(rank - 2), rank - 1, rank - 2])


def lower(size: int, diagonal: int = 0) -> Any:
    """Ones on and below a diagonal."""
    import numpy as np

    return constant(np.tril(np.ones((size, size), np.float32), diagonal))


def last_row(value: Any, size: int) -> Any:
    """The last of ``size`` rows, still as a matrix."""
    from onnxscript import opset20 as op

    return op.Slice(value, constant([size - 1]), constant([size]), constant([-2]))


def decays(log: Any, size: int) -> tuple[Any, Any]:
    """What is kept within a chunk, from logarithms (..., size, 1).

    Sums of the logarithms between two steps are made one by one, not as differences of sums from
    the chunk's start: those lose all digits behind a step that keeps nothing.

    Returns:
        From the chunk's start to each step (..., size, 1); and from column to row
        (..., size, size), ones above the diagonal.
    """
    from onnxscript import opset20 as op

    axis = constant(-2)
    start = op.Exp(op.CumSum(log, axis))
    between = op.Exp(op.CumSum(op.Mul(log, lower(size, -1)), axis))
    return start, between

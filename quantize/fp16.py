"""Fp16: half precision written into the graph as explicit casts.

1. Normalisations, softmax, exponentials, reductions and recurrences run in fp32, and so does
   what a rewrite marked with ``edit.IN_FLOAT32``.
2. What only moves values (views, concatenations...) follows its inputs.
3. Everything else runs in fp16; a constant it needs is stored in fp16, clamped to its range.
4. Inputs and outputs of the graph keep their dtypes.
5. What torch.export asserts of a value's dtype held for the source, and is dropped.

TensorRT builds strongly typed networks only, so this is where precision is decided for all
backends. The fp32 softmax costs TensorRT no memory: it fuses the attention all the same.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from edgekit.edit import IN_FLOAT32, Editor

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.model import Graph

#: Names of operators, without overloads, that run in fp32 (rule 1).
FLOAT32 = frozenset(
    """
    layer_norm group_norm batch_norm instance_norm rms_norm native_layer_norm native_group_norm
    _native_batch_norm_legit_no_training softmax _softmax log_softmax logsumexp softplus exp exp2
    expm1 log log2 log1p pow rsqrt reciprocal sum mean var std var_mean norm linalg_vector_norm
    prod cumsum cumprod adaptive_avg_pool1d adaptive_avg_pool2d cosine_similarity normalize sin
    cos mamba_scan linear_scan ssd gated_delta lmu fire
    """.split()
)
#: Operators that move values without computing with them (rule 2).
MOVES = frozenset(
    """
    view reshape _unsafe_view flatten unflatten permute transpose t contiguous clone expand repeat
    squeeze unsqueeze slice select index index_select gather narrow split split_with_sizes chunk
    unbind cat stack pad constant_pad_nd roll flip alias detach dropout getitem pixel_shuffle
    pixel_unshuffle unfold movedim swapaxes tile repeat_interleave max_pool2d relu neg abs amax
    amin maximum minimum where masked_fill upsample_nearest2d lift_fresh_copy as_strided _to_copy
    to topk sort argmax argmin quantize_per_tensor quantize_fp8 latest
    """.split()
)
#: What torch.export writes beside a cast in the user's code (rule 5).
CLAIM = "aten._assert_tensor_metadata.default"
_WIDE, _HALF = torch.float32, torch.float16


def rewrite_fp16(graph: Graph, precision: str = "fp16") -> Graph:
    """The graph in half precision, labelled ``precision``."""
    return _HalfPrecision(graph).run(precision)


class _HalfPrecision:
    """Walks the graph once; ``kind`` holds each value's float dtype as it will be."""

    def __init__(self, graph: Graph) -> None:
        self.editor = Editor(graph)
        self.kind: dict[Node, torch.dtype] = {}
        self.casts: dict[tuple[Node, torch.dtype], Node] = {}
        for node in self.editor.fx.find_nodes(op="placeholder"):
            if _is_float(node):
                self.kind[node] = node.meta["val"].dtype

    def run(self, precision: str) -> Graph:
        """Convert call by call, then restore the outputs' dtypes."""
        wanted = {
            node: node.meta["val"].dtype
            for node in self.editor.fx.output_node().all_input_nodes
            if _is_float(node)
        }
        for node in self.editor.calls(CLAIM):
            self.editor.fx.erase_node(node)
        for node in self.editor.calls():
            self._convert(node)
        end = self.editor.fx.output_node()
        for node, dtype in wanted.items():
            end.replace_input_with(node, self._cast(node, dtype, end))
        return self.editor.done(precision)

    def _convert(self, node: Node) -> None:
        name = _name(node)
        if name.startswith("dequantize"):
            node.kwargs = {**node.kwargs, "out_dtype": _HALF}
            self.kind[node] = _HALF
            return
        floats = [n for n in node.all_input_nodes if n in self.kind]
        dtype = self._dtype(name, node, floats)
        for source in floats:
            node.replace_input_with(source, self._cast(source, dtype, node))
        asked = node.kwargs.get("dtype")
        if any(_floating(value) for value in _values(node)):
            fixed = asked if isinstance(asked, torch.dtype) else None
            self.kind[node] = fixed or _explicit(name, node) or (dtype if floats else _WIDE)

    def _dtype(self, name: str, node: Node, floats: list[Node]) -> torch.dtype:
        if name in FLOAT32 or IN_FLOAT32 in node.meta:
            return _WIDE
        kinds = {self.kind[n] for n in floats}
        if name in MOVES and len(kinds) == 1 and not self._only_constants(floats):
            return kinds.pop()
        return _HALF

    def _only_constants(self, floats: list[Node]) -> bool:
        return all(self.editor.tensor(n) is not None for n in floats)

    def _cast(self, source: Node, dtype: torch.dtype, user: Node) -> Node:
        """``source`` in ``dtype``: itself, a constant stored anew, or a cast after it."""
        if self.kind[source] == dtype:
            return source
        key = (source, dtype)
        if key not in self.casts:
            stored = self.editor.tensor(source)
            if stored is not None:
                limit = torch.finfo(dtype).max
                value = stored.detach().clamp(-limit, limit).to(dtype)
                name = f"{self.editor.tensor_name(source)}_{str(dtype).removeprefix('torch.')}"
                self.casts[key] = self.editor.buffer(name, value)
            else:
                self.casts[key] = self.editor.call(
                    torch.ops.aten._to_copy.default, source, like=user, dtype=dtype
                )
            self.kind[self.casts[key]] = dtype
        return self.casts[key]


def _name(node: Node) -> str:
    """``softmax`` for ``aten.softmax.int``."""
    if node.target is operator.getitem:
        return "getitem"
    parts = str(node.target).split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def _explicit(name: str, node: Node) -> torch.dtype | None:
    """The dtype that a cast in the user's own model asks for, if it asks for a float."""
    if name not in ("to", "_to_copy", "type_as"):
        return None
    asked = [a for a in node.args if isinstance(a, torch.dtype) and a.is_floating_point]
    return asked[0] if asked else None


def _values(node: Node) -> Iterator[object]:
    value = node.meta.get("val")
    yield from value if isinstance(value, tuple | list) else (value,)


def _floating(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in (_WIDE, torch.float64)


def _is_float(node: Node) -> bool:
    return _floating(node.meta.get("val"))

"""Place: write quantize/dequantize pairs from a scale table into the exported graph.

For a site with scale s: q(x) = clamp(round(x / s), qmin, qmax), x' = s q(x). Where a runtime
wants unsigned levels, q(x) + 128 is stored: the value is the same.
The operators are torch's ``quantized_decomposed`` ones, and ours for what those lack. Every
converter lowers them, so the graph that is verified in PyTorch is the graph that ships.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - registers the operators

from edgekit.converters.rewrites.attention import is_static, scale_of, write_out
from edgekit.edit import Editor
from edgekit.errors import EdgekitError
from edgekit.quantize import operators  # noqa: F401 - registers ours
from edgekit.quantize.scales import Entry, ScaleTable, half_exact
from edgekit.quantize.schemes import QMAX
from edgekit.quantize.sites import KINDS, Site, find_sites
from edgekit.quantize.weights import levels
from edgekit.targets.rules import Rules

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.model import Graph

QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
DEQUANTIZE_CHANNELS = torch.ops.quantized_decomposed.dequantize_per_channel.default
DEQUANTIZE_GROUPS = torch.ops.edgekit.dequantize_groups.default
QUANTIZE_FP8 = torch.ops.edgekit.quantize_fp8.default
DEQUANTIZE_FP8 = torch.ops.edgekit.dequantize_fp8.default
#: What a quantized weight is read through.
_WEIGHTS = (DEQUANTIZE_CHANNELS, DEQUANTIZE_GROUPS)
#: The suffix of a buffer whose int8 levels fit 4 bits; converters store it in half the bytes.
INT4 = "_int4"


def place(graph: Graph, table: ScaleTable, rules: Rules, precision: str = "int8") -> Graph:
    """The graph, labelled ``precision``, quantized where the runtime takes it.

    Raises:
        EdgekitError: the table is of another model, or lacks half of a layer.
    """
    editor = Editor(graph)
    sites = fitting_sites(editor, table)
    calls = {node.name: node for node in editor.calls()}
    placer = _Placer(editor, rules)
    for name, site in sites.items():
        if name not in table.sites or not rules.takes(site.operator):
            continue
        call = calls[site.node]
        if site.kind == "weight" and _operator(call.args[0]) not in rules.float_after:
            placer.layer(call, site, table)
        elif site.kind == "query" and is_static(call):
            placer.attention(call, site, table)
    return editor.done(precision)


def _operator(source: Any) -> str:
    return str(source.target)


def count_quantized(graph: Graph) -> int:
    """How many modules of a placed graph have quantized weights."""
    return len(_quantized(Editor(graph)))


def kept_float(graph: Graph) -> tuple[str, ...]:
    """The modules that a placed graph leaves in float, though they could be quantized."""
    return tuple(site.module for site in find_sites(Editor(graph)) if site.kind == "weight")


def fitting_sites(editor: Editor, table: ScaleTable) -> dict[str, Site]:
    """The graph's sites by name.

    Raises:
        EdgekitError: the table is of another model, or lacks half of a layer.
    """
    sites = {site.name: site for site in find_sites(editor)}
    calls = {node.name: node for node in editor.calls()}
    _check(table, {name: _channels(editor, calls[site.node], site) for name, site in sites.items()})
    return sites


def _quantized(editor: Editor) -> list[Node]:
    through = [str(operator) for operator in _WEIGHTS]
    eights = [n for n in editor.calls(str(DEQUANTIZE_FP8)) if editor.tensor(n.args[0]) is not None]
    return [*editor.calls(*through), *eights]


def _channels(editor: Editor, call: Node, site: Site) -> int:
    weight = editor.tensor(call.args[1]) if site.kind == "weight" else None
    return 1 if weight is None else weight.shape[0]


def _check(table: ScaleTable, channels: Mapping[str, int]) -> None:
    """Raise unless the table fits a model with these numbers of channels by site."""
    strangers = sorted(set(table.sites) - set(channels))
    if strangers:
        raise EdgekitError(
            "The scale table belongs to another model.",
            f"It has sites that this model lacks: {', '.join(strangers[:5])}.",
            "Calibrate this model: build without the table.",
        )
    for name, entry in table.sites.items():
        grouped = entry.group is not None
        if len(entry.scale) % channels[name] or (
            not grouped and len(entry.scale) != channels[name]
        ):
            raise EdgekitError(
                f"The scale table does not fit {name}.",
                f"It has {len(entry.scale)} scales there; the model needs {channels[name]}.",
                "Calibrate this model: build without the table.",
            )
        module, _, kind = name.rpartition(".")
        needed = [f"{module}.weight"] if kind == "input" else []
        if kind in KINDS["attention"]:
            needed = [f"{module}.{each}" for each in KINDS["attention"]]
        for other in needed:
            if other not in table.sites:
                raise EdgekitError(
                    f"The scale table has {name} without {other}.",
                    "A layer is quantized only with both.",
                    "Remove both to keep the layer in float.",
                )


@dataclass
class _Placer:
    """Quantizes layer by layer; the consumers of one tensor share its pair."""

    editor: Editor
    rules: Rules

    def __post_init__(self) -> None:
        self._pairs: dict[tuple[Node, float, bool], Node] = {}

    def layer(self, call: Node, site: Site, table: ScaleTable) -> None:
        """Quantize what enters a linear or convolution, and its weight."""
        weight = table.sites[site.name]
        enters = table.sites.get(f"{site.module}.input")
        source: Any = call.args[0]
        if enters is not None:
            source = self._pair(source, enters, site.operator in self.rules.unsigned, like=call)
        # No kernel multiplies 8-bit activations by 4-bit weights: those keep 8 bits a level.
        packed = self.rules.int4 and enters is None
        if site.operator == "linear" and self.rules.matmul:
            self._as_matmul(call, source, self._weight(call, weight, packed, transpose=True))
            return
        call.update_arg(0, source)
        call.update_arg(1, self._weight(call, weight, packed, transpose=False))

    def attention(self, call: Node, site: Site, table: ScaleTable) -> None:
        """Quantize the operands of both products; the softmax stays in float."""

        def quantized(kind: str, operand: Node) -> Node:
            entry = table.sites[f"{site.module}.{kind}"]
            scale = entry.scale[0] * (scale_of(call) if kind == "query" else 1)
            scale = float(half_exact(np.array(scale)))
            if entry.dtype == "uint8":
                how = (scale, 0, 0, QMAX["uint8"], torch.uint8)
                levels_ = self.editor.call(QUANTIZE, operand, *how, like=call)
                return self.editor.call(DEQUANTIZE, levels_, *how, like=call)
            return self._integers(operand, scale, False, like=call)

        self.editor.replace(call, write_out(self.editor, call, quantized))

    def _pair(self, source: Node, entry: Entry, unsigned: bool, like: Node) -> Node:
        """Q then DQ, placed at the first consumer and shared by all of the same tensor."""
        key = (source, entry.scale[0], unsigned)
        if key not in self._pairs:
            make = self._eighths if entry.dtype == "fp8" else self._integers
            self._pairs[key] = make(source, entry.scale[0], unsigned, like)
        return self._pairs[key]

    def _integers(self, source: Node, scale: float, unsigned: bool, like: Node) -> Node:
        qmax, zero = QMAX["int8"], 128 if unsigned else 0
        dtype = torch.uint8 if unsigned else torch.int8
        how = (scale, zero, zero - qmax - 1, zero + qmax, dtype)
        levels_ = self.editor.call(QUANTIZE, source, *how, like=like)
        return self.editor.call(DEQUANTIZE, levels_, *how, like=like)

    def _eighths(self, source: Node, scale: float, unsigned: bool, like: Node) -> Node:
        factor = self.editor.buffer(f"{source.name}_scale", torch.tensor([scale]))
        levels_ = self.editor.call(QUANTIZE_FP8, source, scale, like=like)
        return self.editor.call(DEQUANTIZE_FP8, levels_, factor, 0, like=like)

    def _weight(self, call: Node, entry: Entry, packed: bool, transpose: bool) -> Node:
        """The call's weight as stored levels [out, ...] (or [in, out]) and what reads them."""
        editor, holder = self.editor, call.args[1]
        weight = editor.tensor(holder)
        if weight is None:
            raise TypeError(f"{call.name} has no constant weight")
        name = editor.tensor_name(holder)  # type: ignore[arg-type]
        suffix = f"_{entry.dtype}" if entry.dtype != "int4" or packed else "_int8"
        stored = levels(weight, entry)
        scale = torch.tensor(entry.scale, dtype=torch.float32)
        # Core ML packs 4 bits by block only: there a channel is one block.
        grouped = entry.group is not None or (entry.dtype == "int4" and packed and not transpose)
        if grouped:
            scale = scale.reshape(len(stored), -1, *[1] * (stored.dim() - 2))
            scale = scale.T if transpose else scale
        if transpose:
            stored, suffix = stored.T, f"_in_out{suffix}"
        levels_ = editor.buffer(f"{name}{suffix}", stored)
        scale_ = editor.buffer(f"{name}_scale", scale)
        axis = 1 if transpose else 0
        if grouped:
            return editor.call(DEQUANTIZE_GROUPS, levels_, scale_, 1 - axis, like=call)
        if entry.dtype == "fp8":
            return editor.call(DEQUANTIZE_FP8, levels_, scale_, axis, like=call)
        zero = editor.buffer(f"{name}_zero", torch.zeros_like(scale, dtype=torch.int8))
        qmax = QMAX[entry.dtype]
        return editor.call(
            DEQUANTIZE_CHANNELS, levels_, scale_, zero, axis, -qmax, qmax, torch.int8, like=call
        )

    def _as_matmul(self, call: Node, source: Node, weight: Node) -> None:
        """linear(x, W, b) becomes x @ W.T + b, with W.T stored [in, out] and b of rank 3 or more.

        ONNX Runtime makes a float Gemm of a product and a bias of rank 2 or less.
        """
        editor = self.editor
        product = editor.call(torch.ops.aten.matmul.default, source, weight, like=call)
        bias: Any = call.args[2] if len(call.args) > 2 else None
        if bias is not None:
            stored = editor.tensor(bias)
            if stored is None:
                raise TypeError(f"{call.name} has a computed bias")
            rank = max(call.meta["val"].dim(), 3)
            shaped = stored.detach().reshape(*[1] * (rank - 1), -1)
            name = f"{editor.tensor_name(bias)}_rank{rank}"
            product = editor.call(
                torch.ops.aten.add.Tensor, product, editor.buffer(name, shaped), like=call
            )
            if rank > call.meta["val"].dim():
                product = editor.call(torch.ops.aten.squeeze.dim, product, 0, like=call)
        editor.replace(call, product)

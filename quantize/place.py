"""Place: write quantize/dequantize pairs from a scale table into the exported graph.

For a site with scale s: q(x) = clamp(round(x / s), qmin, qmax), x' = s q(x); zero point 0.
The operators are torch's ``quantized_decomposed`` ones, and ours for what those lack. Every
converter lowers them, so the graph that is verified in PyTorch is the graph that ships.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - registers the operators

from edgekit.edit import Editor
from edgekit.errors import EdgekitError
from edgekit.quantize import operators  # noqa: F401 - registers ours
from edgekit.quantize.scales import Entry, ScaleTable
from edgekit.quantize.schemes import QMAX
from edgekit.quantize.sites import Site, find_sites
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
    sites = {site.name: site for site in find_sites(editor)}
    calls = {node.name: node for node in editor.calls()}
    _check(table, {name: _channels(editor, calls[site.node], site) for name, site in sites.items()})
    placer = _Placer(editor, rules)
    for name, site in sites.items():
        if site.kind == "weight" and name in table.sites and rules.takes(site.operator):
            placer.layer(calls[site.node], site, table)
    return editor.done(precision)


def count_quantized(graph: Graph) -> int:
    """How many modules of a placed graph have quantized weights."""
    return len(_quantized(Editor(graph)))


def kept_float(graph: Graph) -> tuple[str, ...]:
    """The modules that a placed graph leaves in float, though they could be quantized."""
    return tuple(site.module for site in find_sites(Editor(graph)) if site.kind == "weight")


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
        half = f"{name.rpartition('.')[0]}.weight"
        if half not in table.sites:
            raise EdgekitError(
                f"The scale table has {name} without {half}.",
                "A layer is quantized only with both.",
                "Remove both to keep the layer in float.",
            )


@dataclass
class _Placer:
    """Quantizes layer by layer; the consumers of one tensor share its pair."""

    editor: Editor
    rules: Rules

    def __post_init__(self) -> None:
        self._pairs: dict[tuple[Node, float], Node] = {}

    def layer(self, call: Node, site: Site, table: ScaleTable) -> None:
        """Quantize what enters a linear or convolution, its weight, and where due its output."""
        weight = table.sites[site.name]
        enters = table.sites.get(f"{site.module}.input")
        leaves = table.sites.get(f"{site.module}.output")
        source: Any = call.args[0]
        if enters is not None:
            source = self._pair(source, enters, like=call)
        # No kernel multiplies 8-bit activations by 4-bit weights: those keep 8 bits a level.
        packed = self.rules.int4 and enters is None
        if site.operator == "linear" and self.rules.matmul:
            self._as_matmul(call, source, self._weight(call, weight, packed, transpose=True))
            return
        call.update_arg(0, source)
        call.update_arg(1, self._weight(call, weight, packed, transpose=False))
        if enters is not None and leaves is not None and self.rules.conv_output:
            self._after(call, leaves)

    def _pair(self, source: Node, entry: Entry, like: Node) -> Node:
        """Q then DQ, placed at the first consumer and shared by all of the same tensor."""
        key = (source, entry.scale[0])
        if key not in self._pairs:
            self._pairs[key] = self._quantized(source, entry, like)
        return self._pairs[key]

    def _quantized(self, source: Node, entry: Entry, like: Node) -> Node:
        editor, scale = self.editor, entry.scale[0]
        if entry.dtype == "fp8":
            factor = editor.buffer(f"{source.name}_scale", torch.tensor([scale]))
            eighth = editor.call(QUANTIZE_FP8, source, scale, like=like)
            return editor.call(DEQUANTIZE_FP8, eighth, factor, 0, like=like)
        qmax = QMAX[entry.dtype]
        how = (scale, 0, -qmax - 1, qmax, torch.int8)
        return editor.call(DEQUANTIZE, editor.call(QUANTIZE, source, *how, like=like), *how, like=like)

    def _after(self, call: Node, entry: Entry) -> None:
        """A pair on a call's output, read by all that read the call."""
        users = list(call.users)
        pair = self._quantized(call, entry, like=call.next)
        for user in users:
            user.replace_input_with(call, pair)

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

"""Int8: write quantize/dequantize pairs from a scale table into the exported graph.

For a site with scale s: q(x) = clamp(round(x / s), qmin, qmax), x' = s q(x); zero point 0.
The operators are torch's own ``quantized_decomposed`` ones, which every converter lowers,
so the graph that is verified in PyTorch is the graph that ships.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - registers the operators

from edgekit.edit import Editor
from edgekit.errors import EdgekitError
from edgekit.quantize.scales import Entry, ScaleTable
from edgekit.quantize.sites import Site, find_sites
from edgekit.targets.rules import Rules

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.model import Graph

QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
DEQUANTIZE_CHANNELS = torch.ops.quantized_decomposed.dequantize_per_channel.default


def place(graph: Graph, table: ScaleTable, rules: Rules) -> Graph:
    """The graph with INT8 written into it where the runtime takes it.

    Raises:
        EdgekitError: the table is of another model, or lacks half of a layer.
    """
    editor = Editor(graph)
    sites = {site.name: site for site in find_sites(editor)}
    calls = {node.name: node for node in editor.calls()}
    _check(table, {name: _scales(editor, calls[site.node], site) for name, site in sites.items()})
    pairs: dict[tuple[Node, float], Node] = {}
    for name, site in sites.items():
        if site.kind == "weight" or name not in table.sites:
            continue
        if site.operator in rules.int8:
            _quantize_call(editor, calls[site.node], site, table, rules, pairs)
    return editor.done(precision="int8")


def count_int8(graph: Graph) -> int:
    """How many modules of a placed graph run in INT8."""
    return len(list(Editor(graph).calls(str(DEQUANTIZE_CHANNELS))))


def kept_float(graph: Graph) -> tuple[str, ...]:
    """The modules that a placed graph leaves in float, though they could be quantized."""
    return tuple(site.module for site in find_sites(Editor(graph)) if site.kind == "weight")


def _check(table: ScaleTable, scales: Mapping[str, int]) -> None:
    """Raise unless the table fits a model with these numbers of scales by site."""
    strangers = sorted(set(table.sites) - set(scales))
    if strangers:
        raise EdgekitError(
            "The scale table belongs to another model.",
            f"It has sites that this model lacks: {', '.join(strangers[:5])}.",
            "Calibrate this model: build without the table.",
        )
    for name, entry in table.sites.items():
        if len(entry.scale) != scales[name]:
            raise EdgekitError(
                f"The scale table does not fit {name}.",
                f"It has {len(entry.scale)} scales there; the model needs {scales[name]}.",
                "Calibrate this model: build without the table.",
            )
        half = name.removesuffix(".input") + ".weight"
        if entry.kind == "activation" and half not in table.sites:
            raise EdgekitError(
                f"The scale table has {name} without {half}.",
                "A layer runs in INT8 only with both.",
                "Remove both to keep the layer in float.",
            )


def _scales(editor: Editor, call: Node, site: Site) -> int:
    weight = editor.tensor(call.args[1]) if site.kind == "weight" else None
    return 1 if weight is None else weight.shape[0]


def _quantize_call(
    editor: Editor,
    call: Node,
    site: Site,
    table: ScaleTable,
    rules: Rules,
    pairs: dict[tuple[Node, float], Node],
) -> None:
    activation = table.sites[site.name]
    weight = table.sites[f"{site.module}.weight"]
    source = call.args[0]
    if not isinstance(source, torch.fx.Node):
        raise TypeError(f"{call.name} has no tensor input")
    key = (source, activation.scale[0])
    if key not in pairs:
        pairs[key] = _activation_pair(editor, source, activation, site, call)
    if site.operator == "linear" and rules.matmul:
        _as_matmul(editor, call, pairs[key], weight)
    else:
        call.update_arg(0, pairs[key])
        call.update_arg(1, _dequantized(editor, call, weight, transpose=False))


def _activation_pair(editor: Editor, source: Node, entry: Entry, site: Site, like: Node) -> Node:
    """Q then DQ, placed at the first consumer and shared by all of the same tensor."""
    levels = (entry.scale[0], 0, site.qmin, site.qmax, torch.int8)
    quantized = editor.call(QUANTIZE, source, *levels, like=like)
    return editor.call(DEQUANTIZE, quantized, *levels, like=like)


def _dequantized(editor: Editor, call: Node, entry: Entry, transpose: bool) -> Node:
    """The call's weight as stored int8 [out, ...] (or [in, out]) and its DQ."""
    holder: Any = call.args[1]
    weight = editor.tensor(holder)
    if weight is None:
        raise TypeError(f"{call.name} has no constant weight")
    name = editor.tensor_name(holder)
    scale = torch.tensor(entry.scale, dtype=torch.float32)
    per_channel = scale.reshape(-1, *[1] * (weight.dim() - 1))
    qmax = 2 ** (entry.bits - 1) - 1
    levels = torch.clamp(torch.round(weight / per_channel), -qmax, qmax).to(torch.int8)
    suffix, axis = ("_in_out", 1) if transpose else ("", 0)
    return editor.call(
        DEQUANTIZE_CHANNELS,
        editor.buffer(f"{name}_int8{suffix}", levels.T if transpose else levels),
        editor.buffer(f"{name}_scale", scale),
        editor.buffer(f"{name}_zero", torch.zeros_like(scale, dtype=torch.int8)),
        axis,
        -qmax,
        qmax,
        torch.int8,
        like=call,
    )


def _as_matmul(editor: Editor, call: Node, activation: Node, weight: Entry) -> None:
    """linear(x, W, b) becomes x @ W.T + b, with W.T stored [in, out] and b of rank 3 or more.

    ONNX Runtime makes a float Gemm of a product and a bias of rank 2 or less.
    """
    product = editor.call(
        torch.ops.aten.matmul.default,
        activation,
        _dequantized(editor, call, weight, transpose=True),
        like=call,
    )
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

"""What a graph computes, as nodes of NIR: one function for each operator.

``converters/nir.py`` says how they are to be read.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.converters.nir_network import FIX, Network, Value
from edgekit.converters.nir_neurons import FIRE, UNIT, ZEROS, fire, spikes_of, unit, zeros
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.model import Graph


def network_of(graph: Graph) -> Network:
    """The whole graph in NIR.

    Raises:
        EdgekitError: as ``nir.convert``.
    """
    from edgekit.edit import Editor

    editor = Editor(graph)
    operators = {str(call.target) for call in editor.calls()}
    network = Network(graph, editor, sequence=FIRE in operators)
    calls = [call for call in editor.calls() if _is_computed(network, call)]
    _check(graph, calls)
    for call in calls:
        network.hold(call, HOLDS[_name(call)](network, call))
    network.give(graph)
    return network


def _is_computed(network: Network, call: Node) -> bool:
    """Whether it gives tensors, not sizes, and depends on inputs."""
    found = call.meta["val"]
    tensors = isinstance(found, tuple | list) or hasattr(found, "dtype")
    return tensors and call not in network.constants


def _name(call: Node) -> str:
    return str(call.target) if call.target is not operator.getitem else "getitem"


def _check(graph: Graph, calls: Sequence[Node]) -> None:
    """Raise unless NIR has a node for every call, and the graph has neurons."""
    from edgekit.edit import module_path

    unknown: dict[str, list[str]] = {}
    for call in calls:
        if _name(call) not in HOLDS:
            name = _name(call).removeprefix("aten.").rpartition(".")[0]
            unknown.setdefault(name, []).append(module_path(call) or call.name)
    if unknown:
        listed = (f"{name} ({_some(paths)})" for name, paths in unknown.items())
        raise EdgekitError(
            "NIR cannot hold the model.", f"It has no node for {', '.join(listed)}.", FIX
        )
    operators = {str(call.target) for call in calls}
    if not operators & {UNIT, FIRE} or {UNIT, FIRE} <= operators:
        both = UNIT in operators
        raise EdgekitError(
            "NIR cannot hold the model.",
            "It has units that count within a call and neurons along a sequence, of two times."
            if both
            else "It has no spiking neurons.",
            "Use either." if both else FIX,
        )
    kinds = {spec.name: spec.dtype for spec in graph.inputs}
    if graph.states or set(kinds.values()) != {"float32"}:
        raise EdgekitError(
            "NIR cannot hold the model.",
            f"Its inputs are {', '.join(f'{n} ({kind})' for n, kind in kinds.items())}; they are "
            "currents there, in float32, and none is a state.",
            "Export the whole sequence, in float32.",
        )


def _some(paths: Sequence[str], most: int = 3) -> str:
    found = list(dict.fromkeys(paths))
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def _still(network: Network, call: Node, value: Value) -> Value:
    """The value, which has no sequence for an operator that would mix its positions."""
    if value.sequence:
        raise EdgekitError(
            f"NIR cannot hold {call.name} along a sequence.",
            "It reads several positions, which are steps of time there.",
            "Read one position at a time, or take the mean over all first.",
        )
    return value


def _pass(network: Network, call: Node) -> Value:
    return network.value(call.args[0])


def _linear(network: Network, call: Node) -> Value:
    import nir

    x, weight, bias = network.editor.arguments(call)
    value = network.value(x)
    if len(network.shape(call, value)) != 1:
        raise EdgekitError(
            f"NIR cannot hold {call.name}: it is a linear over {x.meta['val'].dim()} axes.",
            "Its linears read vectors.",
            "Flatten first, or write it as a convolution of kernel 1.",
        )
    w, b = network.stored(weight), network.stored(bias)
    if w is None:
        raise TypeError(call.name)
    w = (w * value.factor).astype(np.float32)
    return network.add(call, nir.Linear(w) if b is None else nir.Affine(w, b), value)


def _convolution(network: Network, call: Node) -> Value:
    import nir

    x, weight, bias, stride, padding, dilation, groups = network.editor.arguments(call)
    value = _still(network, call, network.value(x))
    w, b = network.stored(weight), network.stored(bias)
    if w is None:
        raise TypeError(call.name)
    rank = w.ndim - 2
    w = (whole(w, groups) * value.factor).astype(np.float32)
    sizes = tuple(int(size) for size in x.meta["val"].shape[2:])
    stride, padding, dilation = (_sizes(each, rank) for each in (stride, padding, dilation))
    b = np.zeros(len(w), np.float32) if b is None else b
    kind, given = (nir.Conv1d, sizes[0]) if rank == 1 else (nir.Conv2d, sizes)
    return network.add(call, kind(given, w, stride, padding, dilation, 1, b), value)


def whole(weight: np.ndarray[Any, Any], groups: int) -> np.ndarray[Any, Any]:
    """A grouped convolution's weight as one of no groups, (out, in, ...), zero between groups.

    NIR 1.0 checks the types of grouped convolutions wrongly, so that no file of one can be read.
    """
    out, per_group = weight.shape[:2]
    found = np.zeros((out, per_group * groups, *weight.shape[2:]), weight.dtype)
    for group in range(groups):
        rows = slice(group * out // groups, (group + 1) * out // groups)
        found[rows, group * per_group : (group + 1) * per_group] = weight[rows]
    return found


def _sizes(given: Any, rank: int) -> Any:
    """An integer of a convolution in 1d, a pair in 2d, or "same" or "valid"."""
    if isinstance(given, str):
        return given
    sizes = tuple(int(size) for size in given) * (rank if len(given) == 1 else 1)
    return sizes[0] if rank == 1 else sizes


def _pool(network: Network, call: Node) -> Value:
    x, kernel, stride, padding, ceil, counts_padding, divisor = network.editor.arguments(call)
    sides = [int(size) for size in x.meta["val"].shape[2:]]
    kernel, padding = _sizes(kernel, 2), _sizes(padding, 2)
    stride = _sizes(stride, 2) if stride else kernel
    ragged = ceil and any(
        (side + 2 * p - k) % s for side, p, k, s in zip(sides, padding, kernel, stride, strict=True)
    )
    if ragged or (any(padding) and not counts_padding):
        raise EdgekitError(
            f"NIR cannot hold {call.name}: its windows differ in size.",
            "Those of NIR's average pooling are all of one size, with the padding counted.",
            "Pool without ceil_mode, and with count_include_pad.",
        )
    value = network.value(x)
    if divisor is not None:
        value = replace(value, factor=value.factor * math.prod(kernel) / divisor)
    return _pooled(network, call, value, kernel, stride, padding)


def _adaptive_pool(network: Network, call: Node) -> Value:
    x: Any = call.args[0]
    sides = [int(size) for size in x.meta["val"].shape[2:]]
    wanted = [int(size) for size in call.meta["val"].shape[2:]]
    if any(side % size for side, size in zip(sides, wanted, strict=True)):
        raise EdgekitError(
            f"NIR cannot hold {call.name}: {sides} is not a multiple of {wanted}.",
            "The windows of its average pooling are all of one size.",
            "Pool to a size that divides the input's.",
        )
    kernel = [side // size for side, size in zip(sides, wanted, strict=True)]
    return _pooled(network, call, network.value(x), kernel, kernel, (0, 0))


def _pooled(
    network: Network,
    call: Node,
    value: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    part: str = "",
) -> Value:
    """Average pooling, which leaves the factor to what reads it."""
    import nir

    made = nir.AvgPool2d(np.array(kernel), np.array(stride), np.array(padding))
    found = network.add(call, made, _still(network, call, value), part)
    return replace(found, factor=value.factor)


def _mean(network: Network, call: Node) -> Value:
    """Over all of an image, or over a sequence."""
    x, axes, keeps, _ = network.editor.arguments(call)
    value, shape = network.value(x), x.meta["val"].shape
    wanted = sorted(axis % len(shape) for axis in axes)
    if value.sequence and wanted == [1] and not keeps:
        return network.average(value)
    if value.sequence or len(shape) != 4 or wanted != [2, 3]:
        raise EdgekitError(
            f"NIR cannot hold {call.name}: a mean over axes {wanted} of {len(shape)}.",
            "It has means over whole images; over a sequence they are taken at the output.",
            FIX,
        )
    sides = [int(size) for size in shape[2:]]
    pooled = _pooled(network, call, value, sides, sides, (0, 0), "" if keeps else "_pool")
    return pooled if keeps else _flat(network, call, pooled, (int(shape[1]), 1, 1))


def _reshape(network: Network, call: Node) -> Value:
    x: Any = call.args[0]
    value = network.value(x)
    before, after = network.shape(x, value), network.shape(call, value)
    if before == after:
        return value
    if len(after) != 1 or math.prod(before) != after[0]:
        raise EdgekitError(
            f"NIR cannot hold {call.name}: it makes {after} of {before}.",
            "NIR only flattens.",
            FIX,
        )
    return _flat(network, call, _still(network, call, value), before)


def _flat(network: Network, call: Node, value: Value, shape: tuple[int, ...]) -> Value:
    import nir

    found = network.add(call, nir.Flatten(np.array(shape), 0, -1), value)
    return replace(found, factor=value.factor)


def _sum(network: Network, call: Node) -> Value:
    """Edges that meet; through a node where an edge would be double, or factors differ."""
    first, second, alpha = network.editor.arguments(call)
    a, b = network.value(first), network.value(second)
    b = replace(b, factor=b.factor * alpha)
    if network.shape(first, a) != network.shape(second, b) or a.sequence != b.sequence:
        raise EdgekitError(
            f"NIR cannot hold {call.name}: it sums two shapes.", "Edges add equal ones.", FIX
        )
    if a.factor != b.factor or set(a.sources) & set(b.sources):
        a, b = network.scaled(call, a, "_first"), network.scaled(call, b, "_second")
    return replace(a, sources=(*a.sources, *b.sources), depth=max(a.depth, b.depth))


#: What NIR holds: the operator, and what adds its nodes.
HOLDS: dict[str, Callable[[Network, Node], Value]] = {
    "aten.linear.default": _linear,
    "aten.conv1d.default": _convolution,
    "aten.conv2d.default": _convolution,
    "aten.conv1d.padding": _convolution,
    "aten.conv2d.padding": _convolution,
    "aten.avg_pool2d.default": _pool,
    "aten.adaptive_avg_pool2d.default": _adaptive_pool,
    "aten.mean.dim": _mean,
    "aten.flatten.using_ints": _reshape,
    "aten.reshape.default": _reshape,
    "aten.add.Tensor": _sum,
    "aten.clone.default": _pass,
    "aten.alias.default": _pass,
    "aten.contiguous.default": _pass,
    UNIT: unit,
    FIRE: fire,
    "getitem": spikes_of,
    **dict.fromkeys(ZEROS, zeros),
}

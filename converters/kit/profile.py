"""Where an engine spends its time: its layers, and the ONNX nodes and modules they come from.

TensorRT times each layer of a call for an IProfiler. A layer is one node, or several fused, and
says which in one of these ways:

1. The engine's own details, where it was built with them: ``[ONNX Layer: a]`` for each node.
2. Its name: ``a + b``, ``PWN(a, b)``, ``a || b`` or ``Reformatting CopyNode for Input Tensor 0
   to a``.
3. ``{ForeignNode[a...b]}``: all nodes from a to b.

``kit.json`` has the module, the class and the operator of each node, as the device has no onnx.
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any, Mapping, NamedTuple, Sequence

from .problem import Problem

if TYPE_CHECKING:
    from .engine import Arrays, Engine

#: Calls that are profiled, and those before them that are not.
CALLS, WARMUP = 20, 3
#: Classes whose work outweighs what is fused with it.
COSTLY = {"attention", "scan", "linear", "convolution"}
_DETAIL = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]|\[ONNX|$)")
_BETWEEN = re.compile(r" \+ | \|\| |, |[(){}]|ForeignNode\[|\]")


class Node(NamedTuple):
    """What is known of an ONNX node; ``kind`` is its class, such as "attention"."""

    module: str
    kind: str
    operator: str


class Nodes:
    """The nodes of a model, in its order, from ``kit.json``."""

    def __init__(self, stored: Mapping[str, Any]) -> None:
        modules, kinds, operators = stored["modules"], stored["classes"], stored["operators"]
        self._rank = {kind: place for place, kind in enumerate(stored["order"])}
        self._nodes = {
            name: Node(modules[m], kinds[k], operators[o])
            for name, (m, k, o) in stored["nodes"].items()
        }
        self._place = {name: place for place, name in enumerate(self._nodes)}

    def of(self, layer: str, detail: str = "") -> Node:
        """Of a layer: the module that its nodes have in common, and what costs most in it.

        Where more than one costly class is in it, as in a whole model fused into one, none of them
        can be said to take its time: its class is "other".
        """
        found = [self._nodes[name] for name in self._names(layer, detail)]
        if not found:
            return Node("", "copy" if "Reformat" in layer else "", layer.split(" ")[0])
        heavy = min(found, key=lambda node: self._rank.get(node.kind, len(self._rank)))
        more = f" and {len(found) - 1} more" if len({n.operator for n in found}) > 1 else ""
        several = len({node.kind for node in found} & COSTLY) > 1
        kind = "other" if several else heavy.kind
        return Node(common([n.module for n in found]), kind, heavy.operator + more)

    def _names(self, layer: str, detail: str) -> list[str]:
        named = [name for name in _DETAIL.findall(detail) if name in self._nodes]
        if named:
            return named
        if "Reformatting CopyNode" in layer:
            layer = re.sub(r"^Reformatting .*? to ", "", layer)
        start, dots, end = layer.partition("...")
        firsts, lasts = self._known(start), self._known(end)
        if dots and firsts and lasts:
            places = [self._place[name] for name in firsts + lasts]
            return list(self._nodes)[min(places) : max(places) + 1]
        return self._known(layer)

    def _known(self, text: str) -> list[str]:
        """The nodes that a text names."""
        return [part for part in _BETWEEN.split(text) if part in self._nodes]


def common(modules: Sequence[str]) -> str:
    """The innermost module that holds them all; one that is not known says nothing."""
    known = [module.split(".") for module in modules if module]
    shared: list[str] = []
    for parts in zip(*known):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def profile(trt: Any, engine: Engine, inputs: Arrays, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Where one call spends its time.

    Args:
        stored: the nodes in ``kit.json``.

    Returns:
        whole_ms and profiled_ms: a call without the profiler and with it; layers, in the order in
        which they ran: name, operator, class, module, milliseconds.

    Raises:
        Problem: TensorRT timed no layer.
    """
    profiler, nodes = make_profiler(trt), Nodes(stored)
    whole = _timed(engine, inputs)
    engine.profile(profiler)
    for _ in range(WARMUP):
        engine.infer(inputs)
    profiler.times.clear()
    profiled = _timed(engine, inputs)
    if not profiler.times:
        raise Problem("TensorRT timed no layer of the engine.", "Its profiler was not called.")
    details = layer_details(trt, engine)
    layers = []
    for name, times in profiler.times.items():
        node = nodes.of(name, details.get(name, ""))
        about = {"name": name, "operator": node.operator, "class": node.kind, "module": node.module}
        layers.append({**about, "milliseconds": round(_median(_by_call(times)), 6)})
    return {"whole_ms": whole, "profiled_ms": profiled, "layers": layers}


def make_profiler(trt: Any) -> Any:
    """A TensorRT profiler that keeps the milliseconds of each layer in each call."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.setdefault(layer_name, []).append(float(ms))

    return Profiler()


def layer_details(trt: Any, engine: Engine) -> dict[str, str]:
    """What the engine keeps of where each layer comes from, by the layer's name."""
    told = json.loads(engine.layer_information(trt.LayerInformationFormat.JSON), strict=False)
    layers = [layer for layer in told.get("Layers", []) if isinstance(layer, dict)]
    return {str(layer.get("Name")): str(layer.get("Metadata", "")) for layer in layers}


def shares(layers: Sequence[Mapping[str, Any]], key: str) -> list[tuple[str, float]]:
    """Parts of all layers' time by class, or by module to a depth of 2, the largest first."""
    sums: dict[str, float] = {}
    for layer in layers:
        name = ".".join(layer[key].split(".")[:2])
        sums[name] = sums.get(name, 0.0) + layer["milliseconds"]
    total = sum(sums.values()) or 1.0
    return sorted(((name, ms / total) for name, ms in sums.items()), key=lambda s: -s[1])


def _by_call(times: Sequence[float]) -> list[float]:
    """The milliseconds of each call: the body of a loop is timed each time that it runs."""
    each = max(1, len(times) // CALLS)
    return [sum(times[start : start + each]) for start in range(0, each * CALLS, each)]


def _timed(engine: Engine, inputs: Arrays) -> float:
    """Median milliseconds of a call."""
    times = []
    for _ in range(CALLS):
        before = time.perf_counter()
        engine.infer(inputs)
        times.append(time.perf_counter() - before)
    return round(_median(times) * 1e3, 6)


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]

"""Streams: a graph of towers that read each other, cut into one graph for each stream and step.

A tower with cross-attention both ways cannot run alone to its end: it waits for the other at
each exchange. So it is cut there. Three rules place every node, and they hold for any labels:

1. Stream. Where a stream starts is given (an input or modules, by glob) or ``stream_labels`` finds.
   From there a node is of the stream of its first operand that has one and is no condition: a
   residual sum of that of what is added to, attention of its queries', a key of that of the
   tokens it is made of.
2. Step. A node's step is the highest of its operands', and one more where an operand is of
   another stream. So the graphs of one step never read each other and may run at the same time.
3. The rest. What comes from no stream (text, a timestep) is of each stream that uses it, at the
   earliest step that does; later steps get it from there.

What cannot be sent from graph to graph (quantized levels, booleans, sizes, tuples) is computed
again by the graph that needs it. No weight is stored twice in a stream but where it is used at
several steps; ``Split.repeated`` counts the bytes that are.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.converters.stream_labels import Whole, is_size
from edgekit.errors import EdgekitError
from edgekit.model import Dim, Input

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph

#: What the name of a node gets where its value leaves its graph: some converters number nodes anew,
#: and may call another one so.
SENT = "_sent"
#: What goes from graph to graph; every runtime takes it as an input.
_DTYPES = ("float16", "float32", "float64", "int32", "int64")

Place = tuple[str, int]


@dataclass(frozen=True)
class Segment:
    """What one stream does between two exchanges.

    Attributes:
        name: of its artifact: the stream and the segment's number in it, such as ``video_0``.
        step: segments of one step do not depend on each other.
        graph: its inputs and outputs have the names of the whole graph's inputs, and of its nodes
            with ``SENT``.
    """

    name: str
    stream: str
    step: int
    graph: Graph


@dataclass(frozen=True)
class Split:
    """A graph as segments, in an order in which they can run.

    Attributes:
        inputs: of the whole graph.
        outputs: name of each of the whole graph's outputs -> the value that it is.
        repeated: bytes of weights that are stored once more, because several segments use them.
    """

    segments: tuple[Segment, ...]
    inputs: tuple[Input, ...]
    outputs: Mapping[str, str]
    repeated: int


def split(graph: Graph, starts: Mapping[str, str]) -> Split:
    """Cut a graph by stream and step.

    Args:
        graph: as it would be converted whole.
        starts: stream -> glob of the input or the modules that it starts with; empty finds the
            inputs whose streams read each other.

    Raises:
        EdgekitError: the graph carries states, a glob matches nothing, or there are not two
            streams (it says what there is).
    """
    if graph.states:
        raise EdgekitError(
            "A model that carries states from call to call is not split by streams.",
            "Its states would have to go with their stream.",
            "Drop --split-streams, or --mode stream.",
        )
    whole = Whole(graph)
    labels = whole.labels(starts) if starts else whole.found()
    places = _Places(whole, labels)
    segments = places.segments()
    streams = sorted({segment.stream for segment in segments})
    if len(streams) < 2:
        asked = ", ".join(f"{name}={glob}" for name, glob in starts.items())
        raise EdgekitError(
            f"The outputs need only the stream {streams[0]}: there is nothing to split.",
            f"Asked for were {asked}; what the others start with reaches no output.",
            "Name for each stream the input or the modules that it starts with.",
        )
    return Split(segments, graph.inputs, places.outputs(), _repeated(segments))


class _Places:
    """Where each value is computed, and the segments that follow from it."""

    def __init__(self, whole: Whole, labels: Mapping[Node, str]) -> None:
        self._whole = whole
        steps = _steps(whole.nodes, labels)
        #: Node -> stream -> the step at which this stream computes it.
        self._homes: dict[Node, dict[str, int]] = {n: {labels[n]: s} for n, s in steps.items()}
        first = next(iter(dict.fromkeys(labels.values())))
        for node in reversed(whole.nodes):
            if node.op == "call_function" and node not in self._homes:
                self._homes[node] = self._used(node) or {first: 0}

    def _used(self, node: Node) -> dict[str, int]:
        """Rule 3: each stream that uses a node, and the earliest step at which it does."""
        found: dict[str, int] = {}
        for user in node.users:
            for stream, step in self._homes.get(user, {}).items():
                found[stream] = min(step, found.get(stream, step))
        return found

    def outputs(self) -> dict[str, str]:
        """The value that each of the whole graph's outputs is."""
        return {name: self._name(node) for name, node in self._whole.results.items()}

    def segments(self) -> tuple[Segment, ...]:
        """Every segment that an output needs, earlier steps first."""
        gives: dict[Place, set[Node]] = defaultdict(set)
        for node in self._whole.results.values():
            if node in self._homes:
                gives[self._source(node, ("", 0))].add(node)
        takes: dict[Place, set[Node]] = {}
        # What a segment takes comes from earlier steps, so each is complete when its turn comes.
        while waiting := gives.keys() - takes.keys():
            place = max(waiting, key=lambda place: place[1])
            takes[place] = self._taken(place, gives[place])
            for node in takes[place]:
                gives[self._source(node, place)].add(node)
        streams = list(dict.fromkeys(stream for homes in self._homes.values() for stream in homes))
        order = sorted(takes, key=lambda place: (place[1], streams.index(place[0])))
        return self._cut(order, takes, gives)

    def _source(self, node: Node, reader: Place) -> Place:
        """The earlier segment that a reader has a value from: of its own stream, if one has it."""
        homes, (stream, step) = self._homes[node], reader
        if homes.get(stream, step) < step:
            return stream, homes[stream]
        return min(homes.items(), key=lambda home: home[1])

    def _taken(self, place: Place, results: Iterable[Node]) -> set[Node]:
        """The values that a segment has from others."""
        stream, step = place
        taken, seen, waiting = set(), set(results), list(results)
        while waiting:
            for operand in waiting.pop().all_input_nodes:
                if operand in seen or operand.op != "call_function":
                    continue
                seen.add(operand)
                if self._homes[operand].get(stream) == step or not _is_sent(operand):
                    waiting.append(operand)
                else:
                    taken.add(operand)
        return taken

    def _cut(
        self, order: list[Place], takes: Mapping[Place, set[Node]], gives: Mapping[Place, set[Node]]
    ) -> tuple[Segment, ...]:
        counts: dict[str, int] = defaultdict(int)
        numbers = {step: number for number, step in enumerate(sorted({s for _, s in order}))}
        segments = []
        for place in order:
            stream, step = place
            graph = self._graph(takes[place], gives[place])
            name = f"{re.sub(r'[^a-zA-Z0-9]', '_', stream)}_{counts[stream]}"
            segments.append(Segment(name, stream, numbers[step], graph))
            counts[stream] += 1
        return tuple(segments)

    def _graph(self, taken: set[Node], given: set[Node]) -> Graph:
        from edgekit.edit import Editor

        whole = self._whole
        sizes = _sizes(whole.inputs)
        editor = Editor(whole.graph)
        copies = dict(zip(whole.nodes, editor.fx.nodes, strict=True))
        results = {n.name + SENT: copies[n] for n in whole.nodes if n in given}
        editor.cut({copies[n]: _input(n, sizes) for n in whole.nodes if n in taken}, results)
        _read_sizes_inside(editor)
        editor.cut({}, results)
        return editor.done()

    def _name(self, node: Node) -> str:
        spec = self._whole.inputs.get(node)
        return node.name + SENT if spec is None else spec.name


def _steps(nodes: Iterable[Node], labels: Mapping[Node, str]) -> dict[Node, int]:
    """Rule 2, of what is computed in a stream."""
    steps: dict[Node, int] = {}
    for node in nodes:
        if node in labels and node.op == "call_function":
            after = (
                steps[p] + (labels[p] != labels[node]) for p in node.all_input_nodes if p in steps
            )
            steps[node] = max(after, default=0)
    return steps


def _is_sent(node: Node) -> bool:
    """Whether a value can go from one artifact to another."""
    value = node.meta.get("val")
    dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
    return dtype in _DTYPES and value is not None and value.dim() > 0


def _sizes(inputs: Mapping[Node, Input]) -> dict[Any, Dim]:
    """The sizes that vary, by torch's symbol."""
    return {
        node.meta["val"].shape[axis].node.expr: size
        for node, spec in inputs.items()
        for axis, size in enumerate(spec.shape)
        if isinstance(size, Dim)
    }


def _input(node: Node, sizes: Mapping[Any, Dim]) -> Input:
    """A value as an input."""
    value = node.meta["val"]
    shape = tuple(
        size if isinstance(size, int) else _dim(size.node.expr, sizes) for size in value.shape
    )
    return Input(node.name + SENT, shape, str(value.dtype).removeprefix("torch."))


def _dim(expression: Any, sizes: Mapping[Any, Dim]) -> int | Dim:
    """A size that varies with those of the inputs."""
    if expression in sizes:
        return sizes[expression]
    if expression.is_number:
        return int(expression)
    names = {symbol: sizes[symbol].name for symbol in expression.free_symbols}
    bounds = (
        int(expression.subs({s: getattr(sizes[s], end) for s in names}))
        for end in ("least", "usual", "most")
    )
    return Dim(str(expression.subs(names)).replace(" ", ""), *bounds)


def _read_sizes_inside(editor: Editor) -> None:
    """Take sizes from inputs that are read anyway, not from one that only has the same size."""
    inputs = [n for n in editor.fx.find_nodes(op="placeholder") if editor.tensor(n) is None]
    read = [n for n in inputs if not all(is_size(user) for user in n.users)]
    known = {
        size.node.expr: (node, axis)
        for node in read
        for axis, size in enumerate(node.meta["val"].shape)
        if not isinstance(size, int)
    }
    for node in editor.calls("aten.sym_size.int"):
        expression = node.meta["val"].node.expr
        if node.args[0] not in read and expression in known:
            node.args = known[expression]


def _repeated(segments: Iterable[Segment]) -> int:
    """Bytes of weights that are stored more than once, beyond the first time."""
    count: dict[str, int] = defaultdict(int)
    size: dict[str, int] = {}
    for program in (segment.graph.exported for segment in segments):
        for spec in program.graph_signature.input_specs:
            name = str(spec.target)
            tensor = program.state_dict.get(name, program.constants.get(name))
            count[name] += 1
            size[name] = getattr(tensor, "nbytes", 0)
    return sum(bytes_ * (count[name] - 1) for name, bytes_ in size.items())

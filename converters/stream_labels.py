"""Which stream each node of a graph is of: rule 1 of ``converters.streams``."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.model import Graph

#: An input that may start a stream is at least (batch, tokens, features).
_RANK = 3


class Whole:
    """The graph that is split, only looked at."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Node] = list(graph.exported.graph.nodes)
        names = graph.exported.graph_signature.user_inputs
        known = {node.name: node for node in self.nodes}
        self.inputs = {known[str(n)]: i for n, i in zip(names, graph.inputs, strict=True)}
        results: Any = graph.exported.graph.output_node().args[0]
        self.results: dict[str, Node] = dict(zip(graph.outputs, results, strict=True))
        #: What depends on an input, by more than its size; the rest is made of weights.
        self.fed: set[Node] = set(self.inputs)
        for node in self.nodes:
            if not is_size(node) and not self.fed.isdisjoint(node.all_input_nodes):
                self.fed.add(node)

    def labels(self, starts: Mapping[str, str]) -> dict[Node, str]:
        """The stream of each node that has one, by rule 1.

        Raises:
            EdgekitError: a glob matches neither an input nor a module.
        """
        labels: dict[Node, str] = {}
        free = set(self.inputs)  # sizes that any segment knows without another's values
        matched = set()
        for node in self.nodes:
            own = self._started(node, starts)
            if own is not None:
                matched.add(own)
            elif node.op == "call_function":
                if is_size(node) and free.issuperset(node.all_input_nodes):
                    free.add(node)
                    continue
                operands = sorted(node.all_input_nodes, key=_is_condition)
                own = next((labels[p] for p in operands if p in labels), None)
            if own is not None:
                labels[node] = own
        for name in starts:
            if name not in matched:
                raise self._unmatched(name, starts[name])
        return labels

    def found(self) -> dict[Node, str]:
        """The labels of the inputs' streams that read each other.

        Raises:
            EdgekitError: no two do.
        """
        able = [
            s.name for s in self.inputs.values() if len(s.shape) >= _RANK and "float" in s.dtype
        ]
        labels = self.labels({name: name for name in able})
        mutual, reads = _mutual(labels)
        if not mutual:
            told = "; ".join(f"{a} reads {b}" for a, b in sorted(reads)) or "none reads another"
            raise EdgekitError(
                "There are no two streams that read each other.",
                f"Looked at were the inputs {', '.join(able) or '(none has tokens)'}: {told}.",
                "Say where the streams start, by an input or by modules: "
                "--stream-start NAME=GLOB, twice; or drop --split-streams.",
            )
        return self.labels({name: name for name in able if name in mutual})

    def _started(self, node: Node, starts: Mapping[str, str]) -> str | None:
        """The stream that starts here."""
        from edgekit.edit import module_path

        if node in self.inputs:
            names = [self.inputs[node].name]
        elif node in self.fed and self._weighted(node):
            path = module_path(node).split(".")
            names = [".".join(path[: end + 1]) for end in range(len(path))]
        else:
            return None
        fits = (s for s, glob in starts.items() if any(fnmatchcase(n, glob) for n in names))
        return next(fits, None)

    def _weighted(self, node: Node) -> bool:
        """Whether a node reads weights; what only scales or reshapes an input starts no stream."""
        weights = (p.meta.get("val") for p in node.all_input_nodes if p not in self.fed)
        return any(len(getattr(value, "shape", ())) > 1 for value in weights)

    def _unmatched(self, name: str, glob: str) -> EdgekitError:
        from edgekit.edit import module_path

        paths = {module_path(node) for node in self.nodes if node.op == "call_function"} - {""}
        inputs = ", ".join(spec.name for spec in self.inputs.values())
        return EdgekitError(
            f"The stream {name} starts nowhere: {glob!r} matches no input or module with weights.",
            f"The inputs are {inputs}; modules are, for example, {', '.join(sorted(paths)[:8])}.",
            "Correct --stream-start.",
        )


def _mutual(labels: Mapping[Node, str]) -> tuple[set[str], set[tuple[str, str]]]:
    """The streams that read each other, and all pairs (reader, read)."""
    reads = {
        (labels[node], labels[operand])
        for node in labels
        for operand in node.all_input_nodes
        if labels.get(operand, labels[node]) != labels[node]
    }
    return {reader for reader, read in reads if (read, reader) in reads}, reads


def is_size(node: Node) -> bool:
    """Whether a node is a number that depends on the inputs' shapes."""
    return (
        node.op == "call_function"
        and not hasattr(node.meta.get("val"), "dtype")
        and not (isinstance(node.meta.get("val"), tuple | list))
    )


def _is_condition(node: Node) -> bool:
    """Whether a value only chooses between others, as the first operand of a ``where`` does."""
    return str(getattr(node.meta.get("val"), "dtype", "")) == "torch.bool"

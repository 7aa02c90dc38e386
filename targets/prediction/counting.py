"""Counting: an exported graph as groups (``clusters``), with what each computes and moves.

Only shapes are looked at: a model on torch's meta device is counted as well as one with weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.edit import module_path
from edgekit.quantize.sites import find_sites
from edgekit.targets.prediction.clusters import TRANSPARENT, Cluster, Clusters
from edgekit.targets.prediction.groups import Group
from edgekit.targets.prediction.roofline import WEIGHTED
from edgekit.targets.prediction.work import operator_name, size, work_of

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.model import Graph


@dataclass(frozen=True)
class Counted:
    """What a call of a model computes and holds.

    Attributes:
        source: the model, as the user named it.
        batch: samples a call.
        groups: in the order in which they run.
        held: elements alive while each of them runs, beside its own scores.
        constants: numbers that are stored: all weights, tables and other constants.
        passed: elements of the inputs and outputs.
    """

    source: str
    batch: int
    groups: tuple[Group, ...]
    held: tuple[float, ...]
    constants: float
    passed: float


def count(graph: Graph, source: str, exclude: Sequence[str] = ()) -> Counted:
    """What a graph computes and holds.

    Args:
        graph: exported at fixed sizes.
        exclude: globs over module paths that stay in float.

    Raises:
        EdgekitError: a glob matches nothing.
    """
    counter = _Counter(graph, exclude)
    return Counted(
        source=source,
        batch=int(graph.inputs[0].concrete()[0]),
        groups=tuple(counter.groups()),
        held=tuple(counter.held()),
        constants=counter.constants(),
        passed=counter.passed(),
    )


def groups(graph: Graph, exclude: Sequence[str] = ()) -> list[Group]:
    """The groups in the order in which they run.

    Args:
        graph: exported at fixed sizes.
        exclude: globs over module paths that stay in float.

    Raises:
        EdgekitError: a glob matches nothing.
    """
    return list(_Counter(graph, exclude).groups())


class _Counter:
    def __init__(self, graph: Graph, exclude: Sequence[str]) -> None:
        self.made = Clusters(graph)
        self.clusters, self.home = self.made.found, self.made.home
        self.sites = {site.node: site.operator for site in find_sites(self.made.editor, exclude)}
        self.users = {node: list(self.made.readers(node)) for node in self.home}
        self.integer: dict[Node, bool] = {}

    def groups(self) -> Iterator[Group]:
        for cluster in reversed(self.clusters):
            for node in cluster.nodes:
                self.integer[node] = self._only_quantized(node)
        for cluster in self.clusters:
            yield self._group(cluster)

    def held(self) -> Iterator[float]:
        """Elements alive while each group runs: what was written and is still to be read."""
        place = {id(cluster): index for index, cluster in enumerate(self.clusters)}
        end = len(self.clusters)
        changes = [0.0] * (end + 1)
        for node, readers in self.users.items():
            homes = (self.home.get(reader) for reader in readers)
            last = max((place[id(h)] if h else end - 1 for h in homes), default=-1)
            first = place[id(self.home[node])]
            if last > first or not all(self.home.get(r) for r in readers):
                changes[first] += size(node)
                changes[min(last + 1, end)] -= size(node)
        alive = 0.0
        for change in changes[:end]:
            alive += change
            yield alive

    def constants(self) -> float:
        """Numbers that are stored with the graph."""
        placeholders = self.made.editor.fx.find_nodes(op="placeholder")
        stored = (self.made.editor.tensor(node) for node in placeholders)
        return float(sum(tensor.numel() for tensor in stored if tensor is not None))

    def passed(self) -> float:
        """Elements of what the graph is given and gives back."""
        given = [n for n in self.made.reached if n.op == "placeholder"]
        results = self.made.editor.fx.output_node().all_input_nodes
        return sum(map(size, [*given, *results]))

    def _only_quantized(self, node: Node) -> bool:
        """Whether all that read a value can take it as integers."""
        readers = self.users[node]
        return bool(readers) and all(self._takes_integers(r, node) for r in readers)

    def _takes_integers(self, reader: Node, source: Node) -> bool:
        cluster = self.home.get(reader)
        if cluster is None:
            return False
        if cluster is self.home.get(source):
            return True
        if operator_name(cluster.anchor) in TRANSPARENT:
            return all(self.integer.get(node, False) for node in cluster.nodes[-1:])
        return cluster.anchor.name in self.sites

    def _group(self, cluster: Cluster) -> Group:
        anchor, inside = cluster.anchor, set(cluster.nodes)
        reads: dict[Node, float] = {}
        constants = 0.0
        for node in cluster.nodes:
            for source in node.all_input_nodes:
                base = self.made.base(source)
                if base in inside:
                    continue
                if source not in self.made.reached:
                    constants += size(source)
                    continue
                reads[base] = min(reads.get(base, 0.0) + size(source), max(size(base), 1))
        writes = [
            n for n in cluster.nodes if any(self.home.get(u) is not cluster for u in self.users[n])
        ]
        weight = self.made.weight(anchor) if cluster.kind in WEIGHTED else None
        held = float(weight.numel()) if weight is not None else 0.0
        gathers = operator_name(anchor) in ("embedding", "index_select")
        between = sum(size(n) for n in cluster.nodes if n not in writes)
        return Group(
            kind=cluster.kind,
            operator=operator_name(anchor),
            module=module_path(anchor),
            site=self.sites.get(anchor.name, ""),
            weights=held,
            reads=sum(reads.values()),
            writes=sum(map(size, writes)),
            integer_reads=sum(n for base, n in reads.items() if self.integer.get(base, False)),
            integer_writes=sum(size(node) for node in writes if self.integer[node]),
            constants=0.0 if gathers else max(constants - held, 0.0),
            inner=2.0 * between,
            steps=len(cluster.nodes) - 1,
            **work_of(cluster.kind, cluster.nodes, weight),
        )

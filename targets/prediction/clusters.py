"""Clusters: which nodes of an exported graph run as one kernel.

1. What no input reaches is computed once, when the artifact is made, and costs nothing.
2. A view costs nothing. A copy that only rearranges costs nothing beside attention.
3. Convolutions, products, attention, recurrences, reductions and copies each start a cluster.
4. What is computed number by number joins the cluster of the latest of its inputs, so that none
   waits for one that waits for it.
5. A product, a softmax and a product are attention, as they are where a model says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from edgekit.edit import Editor
from edgekit.targets.prediction.work import is_product, operator_name, value

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.model import Graph

VIEWS = frozenset(
    """
    view reshape _unsafe_view flatten unflatten permute transpose t contiguous clone expand squeeze
    unsqueeze slice select split split_with_sizes chunk unbind getitem alias detach dropout narrow
    as_strided lift_fresh_copy movedim swapaxes to _to_copy type_as latest view_as expand_as numpy_T
    """.split()
)
#: Views that copy where what they read does not lie in order.
ORDERING = frozenset("reshape clone contiguous _unsafe_view flatten".split())
MOVES = frozenset(
    """
    cat stack pad constant_pad_nd roll flip repeat index index_select gather embedding tile
    pixel_shuffle pixel_unshuffle repeat_interleave unfold im2col scatter index_put slice_scatter
    masked_scatter scatter_add
    """.split()
)
PADS = ("pad", "constant_pad_nd")
REDUCTIONS = frozenset(
    """
    layer_norm group_norm instance_norm rms_norm softmax _softmax log_softmax logsumexp sum mean var
    std var_mean norm linalg_vector_norm prod amax amin max min argmax argmin cumsum cumprod topk
    sort max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d
    upsample_bicubic2d upsample_linear1d upsample_nearest1d grid_sampler grid_sampler_2d
    cosine_similarity normalize max_pool2d_with_indices _fft_r2c _fft_c2r _fft_c2c
    """.split()
)
CONVOLUTIONS = frozenset(
    "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d".split()
)
PRODUCTS = frozenset("linear matmul mm bmm addmm baddbmm einsum dot mv".split())
ATTENTION = frozenset("scaled_dot_product_attention causal_attention".split())
SCANS = frozenset("mamba_scan linear_scan ssd gated_delta lmu fire".split())
_ANCHORS = MOVES | REDUCTIONS | CONVOLUTIONS | PRODUCTS | ATTENTION | SCANS
#: Copies and poolings pass integers on as they come.
TRANSPARENT = frozenset("max_pool2d cat stack pad constant_pad_nd upsample_nearest2d".split())
_SOFTMAX = frozenset("softmax _softmax".split())


@dataclass
class Cluster:
    """A group while it grows; the first node is what it is built around."""

    nodes: list[Node] = field(default_factory=list)
    kind: str = ""

    @property
    def anchor(self) -> Node:
        return self.nodes[0]


class Clusters:
    """The clusters of a graph in the order in which they run.

    Attributes:
        editor: of the graph.
        reached: the nodes that depend on an input.
        home: the cluster that a node is in; views are in none.
        found: the clusters.
    """

    def __init__(self, graph: Graph) -> None:
        self.editor = Editor(graph)
        self.found: list[Cluster] = []
        self.home: dict[Node, Cluster] = {}
        self.reached = self._reached()
        for node in self.reached:
            if node.op == "call_function":
                self._place(node)
        self._find_attention()
        self._drop_copies_beside_attention()
        self.found = [cluster for cluster in self.found if cluster.nodes]

    def base(self, node: Any) -> Node:
        """The node whose values a view gives."""
        found: Node = node
        while found not in self.home and found.op == "call_function" and found.all_input_nodes:
            found = found.all_input_nodes[0]
        return found

    def readers(self, node: Node) -> Iterator[Node]:
        """What reads a node, through views; the output among it."""
        for user in node.users:
            if (
                user.op == "output"
                or user in self.home
                or operator_name(user) not in (*VIEWS, *PADS)
            ):
                yield user
            else:
                yield from self.readers(user)

    def weight(self, node: Node) -> torch.Tensor | None:
        """The constant that a convolution or product multiplies with."""
        for source in node.all_input_nodes[1:] if len(node.args) > 1 else ():
            if source not in self.reached:
                stored = value(source)
                if isinstance(stored, torch.Tensor) and stored.dim() > 1:
                    return stored
        return None

    def _reached(self) -> dict[Node, None]:
        """What depends on an input (rule 1)."""
        found: dict[Node, None] = {}
        for node in self.editor.fx.nodes:
            given = node.op == "placeholder" and self.editor.tensor(node) is None
            if given or any(source in found for source in node.all_input_nodes):
                found[node] = None
        return found

    def _place(self, node: Node) -> None:
        name = operator_name(node)
        if not isinstance(value(node), torch.Tensor) and name not in _ANCHORS:
            return
        if name in VIEWS and not self._copies(node, name):
            return
        if name in PADS and _shape(node) == _shape(node.args[0]):
            return
        copies = name in ORDERING
        if not copies and name not in _ANCHORS:
            latest = self._latest(node)
            if latest is not None and latest.kind != "move":
                self._join(latest, node)
                return
        if copies:
            latest = self._latest(node)
            beside = latest is not None and latest.kind == "attention"
            if beside or self._enters_attention(node):
                return
        self._join(Cluster(kind=_kind(node, name, copies)), node)

    def _join(self, cluster: Cluster, node: Node) -> None:
        if not cluster.nodes:
            self.found.append(cluster)
        cluster.nodes.append(node)
        self.home[node] = cluster

    def _latest(self, node: Node) -> Cluster | None:
        found = [self.home[b] for b in map(self.base, node.all_input_nodes) if b in self.home]
        places = {id(cluster): place for place, cluster in enumerate(self.found)}
        return max(found, key=lambda cluster: places[id(cluster)], default=None)

    def _copies(self, node: Node, name: str) -> bool:
        """Whether a view has to put its values in order."""
        source = value(node.args[0])
        if name not in ORDERING or not isinstance(source, torch.Tensor):
            return False
        made = value(node)
        if name in ("clone", "contiguous", "_unsafe_view"):
            return not source.is_contiguous() and made.is_contiguous() and source.numel() > 1
        try:
            torch.empty_strided(source.shape, source.stride(), device="meta").view(made.shape)
        except RuntimeError:
            return True
        return False

    def _enters_attention(self, node: Node) -> bool:
        """Whether all that read it, through views, are attention or products of activations."""
        readers = list(self.readers(node))
        return bool(readers) and all(
            operator_name(r) in ATTENTION
            or (operator_name(r) in PRODUCTS and self.weight(r) is None)
            for r in readers
        )

    def _find_attention(self) -> None:
        """Merge a product, what follows it, a softmax and the product behind (rule 5)."""
        for cluster in list(self.found):
            if not cluster.nodes or operator_name(cluster.anchor) not in _SOFTMAX:
                continue
            before = self.home.get(self.base(cluster.anchor.args[0]))
            readers = {id(c): c for c in map(self.home.get, self.readers(cluster.nodes[-1])) if c}
            if before is None or len(readers) != 1:
                continue
            (after,) = readers.values()
            pair = (before, after)
            if all(operator_name(c.anchor) in PRODUCTS for c in pair) and all(
                self.weight(c.anchor) is None for c in pair
            ):
                after.nodes = [*before.nodes, *cluster.nodes, *after.nodes]
                after.kind = "attention"
                before.nodes, cluster.nodes = [], []
                self.home.update(dict.fromkeys(after.nodes, after))

    def _drop_copies_beside_attention(self) -> None:
        """Attention writes its results in the order in which they are read (rule 2)."""
        for cluster in self.found:
            if not cluster.nodes or operator_name(cluster.anchor) not in ORDERING:
                continue
            source = self.home.get(self.base(cluster.anchor.args[0]))
            if source is not None and source.kind == "attention":
                source.nodes.extend(cluster.nodes)
                self.home.update(dict.fromkeys(cluster.nodes, source))
                cluster.nodes = []


def _kind(node: Node, name: str, copies: bool) -> str:
    if name in CONVOLUTIONS:
        weight = value(node.args[1])
        inward = weight.shape[1]
        if inward <= 4 and value(node.args[0]).shape[1] > 4 * inward:
            return "depthwise"
        return "product" if is_product(node) else "conv"
    for kind, names in _KINDS.items():
        if name in names:
            return kind
    return "move" if copies else "pointwise"


_KINDS = {
    "product": PRODUCTS,
    "attention": ATTENTION,
    "scan": SCANS,
    "reduce": REDUCTIONS,
    "move": MOVES,
}


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(value(node).shape)

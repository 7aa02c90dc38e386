"""Rounding: what the methods that choose each weight's level have in common.

With E = W - s q the error of a layer's weight, summed over the rows x that calibration saw, its
output is wrong by  tr(E H E^T),  H = sum x x^T. Rows of W do not mix: each output channel is a
problem of its own with the same H.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from edgekit.compress.sparsity import is_sparse
from edgekit.edit import Editor
from edgekit.quantize.sites import Site, find_sites
from edgekit.quantize.weights import nearest, scale_of, spread

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.model import Graph
    from edgekit.quantize.calibrate import Seen
    from edgekit.quantize.observe import Statistics
    from edgekit.quantize.scales import Entry, ScaleTable


@dataclass(frozen=True)
class Layer:
    """One weight to round, all in float64.

    Attributes:
        weight: (out, K).
        scale: of each value, (out, K).
        gram: H, positive definite, (K, K).
        dtype: of the levels.
        zero: where the level stays 0, (out, K); None is nowhere.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    gram: torch.Tensor
    dtype: str
    zero: torch.Tensor | None = None

    def levels(self, wanted: torch.Tensor, columns: slice | int) -> torch.Tensor:
        """The nearest levels to real values that stand in these columns, as float64."""
        found = nearest(wanted / self.scale[:, columns], self.dtype)
        return found if self.zero is None else found.masked_fill(self.zero[:, columns], 0)

    def losses(self, error: torch.Tensor) -> torch.Tensor:
        """Each output channel's e^T H e, (out,)."""
        return ((error @ self.gram) * error).sum(1)


@dataclass(frozen=True)
class Weight:
    """A quantized weight in the graph, with the call that reads it."""

    site: Site
    call: Node
    name: str
    value: torch.Tensor

    @property
    def bias(self) -> Node | None:
        """What the call adds, where it is constant and no other call's."""
        bias: Any = self.call.args[2] if len(self.call.args) > 2 else None
        return bias if bias is not None and len(bias.users) == 1 else None


def find_weights(editor: Editor, table: ScaleTable) -> Iterator[Weight]:
    """The weights that have scales, and that nothing but one linear or convolution reads."""
    calls = {node.name: node for node in editor.calls()}
    for site in find_sites(editor):
        holder: Any = calls[site.node].args[1]
        if site.kind == "weight" and site.name in table.sites and len(holder.users) == 1:
            value = editor.tensor(holder)
            if value is not None:
                yield Weight(site, calls[site.node], editor.tensor_name(holder), value.detach())


def round_weights(
    graph: Graph,
    table: ScaleTable,
    seen: Seen,
    damping: float,
    choose: Callable[[Layer], torch.Tensor],
) -> Graph:
    """Every weight becomes scale x level, by the levels that ``choose`` gives for a layer.

    An output channel keeps its nearest levels where those lose less. The bias takes up the mean
    of the error. Left for rounding to the nearest is what has no products of its inputs (grouped
    and one-dimensional convolutions), and what more than one call reads. Zeros of a weight that is
    sparse 2:4 stay zero.

    Args:
        damping: share of H's mean diagonal that is added to the diagonal.
    """
    editor = Editor(graph)
    for weight in find_weights(editor, table):
        statistics = seen.by_site.get(f"{weight.site.module}.input")
        rows = weight.value.double().flatten(1)
        if statistics is None or len(statistics.gram) != rows.shape[1]:
            continue
        entry = table.sites[weight.site.name]
        enters = table.sites.get(f"{weight.site.module}.input")
        gram = _gram(statistics, enters, damping, centred=weight.bias is not None)
        zero = rows == 0 if is_sparse(weight.value) else None
        layer = Layer(rows, spread(scale_of(entry), rows), gram, entry.dtype, zero)
        value = _better(layer, choose(layer)).reshape(weight.value.shape)
        correct_bias(editor, weight, value, statistics)
        editor.assign(weight.name, value)
    return editor.done()


def correct_bias(
    editor: Editor, weight: Weight, value: torch.Tensor, statistics: Statistics
) -> None:
    """b' = b - (Wq - W) E[x], where the call has a bias: its mean output is as before.

    The mean of a convolution's input is taken to be the same at every position of the kernel,
    which is not so where it reads padding.

    Args:
        value: Wq, of the weight's shape.
        statistics: of the call's input.
    """
    bias = weight.bias
    stored = None if bias is None else editor.tensor(bias)
    if bias is None or stored is None:
        return
    moved = value.double() - weight.value.double()
    moved = moved.reshape(*moved.shape[:2], -1).sum(2)
    mean = torch.from_numpy(statistics.channel_mean).double().reshape(-1, moved.shape[1])
    by_output = mean.repeat_interleave(len(moved) // len(mean), 0)
    editor.assign(editor.tensor_name(bias), stored.detach().double() - (moved * by_output).sum(1))


def _gram(
    statistics: Statistics, enters: Entry | None, damping: float, centred: bool
) -> torch.Tensor:
    """H as a mean over rows, and what makes it positive definite.

    The layer sees x rounded to steps of s: noise of variance s^2 / 12 in each channel, which is
    added to the diagonal. Where a bias takes up the mean error, what is left is the covariance.
    """
    gram = torch.from_numpy(statistics.gram).double() / max(statistics.gram_rows, 1)
    if centred:
        mean = torch.from_numpy(statistics.gram_sum).double() / max(statistics.gram_rows, 1)
        gram = gram - mean.outer(mean)
    diagonal = gram.diagonal()
    noise = enters.scale[0] ** 2 / 12 if enters is not None and enters.dtype == "int8" else 0.0
    diagonal.clamp_min_(0).add_(damping * float(diagonal.mean()) + noise + 1e-30)
    return gram


def _better(layer: Layer, levels: torch.Tensor) -> torch.Tensor:
    """For each output channel the chosen weight, or the nearest where that loses less."""
    nearest = layer.levels(layer.weight, slice(None)) * layer.scale
    chosen = levels * layer.scale
    gains = layer.losses(layer.weight - chosen) < layer.losses(layer.weight - nearest)
    return torch.where(gains[:, None], chosen, nearest)

"""Accuracy methods: one file each, a frozen dataclass whose fields are its options.

A method that prepares changes tensors of the float graph and leaves its function as it is; a
method that rounds makes weights exactly scale x level. The one operator that a method may add is
``divide``, whose factors it also returns: they are kept beside the scale table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph
    from edgekit.quantize.calibrate import Seen
    from edgekit.quantize.scales import ScaleTable


class Prepare(Protocol):
    """Makes a graph easier to quantize, before its ranges are found."""

    @property
    def observes(self) -> bool:
        """Whether it needs to have seen samples."""
        ...

    def prepare(self, graph: Graph, seen: Seen) -> tuple[Graph, dict[str, torch.Tensor]]:
        """The graph with changed tensors, and by input site the factors that it divides by.

        Args:
            graph: in fp32.
            seen: of the graph's sites.
        """
        ...


class Round(Protocol):
    """Rounds weights, or corrects what rounding did, once the scales are known."""

    @property
    def products(self) -> bool:
        """Whether it needs the products x x^T of each layer's inputs."""
        ...

    def round(self, graph: Graph, table: ScaleTable, seen: Seen) -> Graph:
        """The graph with changed tensors.

        Args:
            graph: in fp32, after the methods before this one.
            table: scales of the graph's sites.
            seen: of the same graph before any rounding.
        """
        ...


def divide(editor: Editor, call: Node, factors: torch.Tensor) -> None:
    """Divide each channel of a linear's or convolution's input, as the model runs.

    The caller multiplies the weight by the same factors, one a channel.
    """
    source: Any = call.args[0]
    linear = str(call.target) == "aten.linear.default"
    shape = (-1,) if linear else (-1, *[1] * (source.meta["val"].dim() - 2))
    inverse = factors.double().reciprocal().float().reshape(shape)
    factor = editor.buffer(f"{call.name}_smooth", inverse)
    call.update_arg(0, editor.call(torch.ops.aten.mul.Tensor, source, factor, like=call))

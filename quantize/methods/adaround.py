"""adaround: levels are moved one after another for as long as the layer's output gets closer.

The objective is that of M. Nagel et al., "Up or Down? Adaptive Rounding for Post-Training
Quantization", ICML 2020, equation 20; it is lowered by coordinate descent, as in K. Behdin et
al., "QuantEase", 2023, which needs no samples but their products, and no learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from edgekit.quantize.methods.gptq import Gptq
from edgekit.quantize.rounding import Layer, round_weights

if TYPE_CHECKING:
    from edgekit.model import Graph
    from edgekit.quantize.calibrate import Seen
    from edgekit.quantize.scales import ScaleTable


@dataclass(frozen=True)
class AdaRound:
    """q_j = argmin over levels of e^T H e, e = w - s q, for j = 1..K, ``sweeps`` times over.

    All other levels held, the best is  round((w_j + sum_(i!=j) e_i H_ij / H_jj) / s_j). No step
    makes the objective larger. It starts from GPTQ's levels.

    Attributes:
        start: what gives the first levels.
        sweeps: how often each level is looked at; it ends early where none moves.
        block: columns between two updates of all the others.
    """

    start: Gptq = field(default_factory=Gptq)
    sweeps: int = 4
    block: int = 128
    products: bool = True

    def round(self, graph: Graph, table: ScaleTable, seen: Seen) -> Graph:
        """The graph with every weight as scale x level, and biases corrected."""
        return round_weights(graph, table, seen, self.start.damping, self.levels)

    def levels(self, layer: Layer) -> torch.Tensor:
        """Levels (out, K) as float64."""
        levels = self.start.levels(layer)
        error = layer.weight - levels * layer.scale
        pull = error @ layer.gram
        for _ in range(self.sweeps):
            before = error.clone()
            for start in range(0, len(layer.gram), self.block):
                columns = slice(start, min(start + self.block, len(layer.gram)))
                old = error[:, columns].clone()
                self._sweep(layer, levels, error, pull[:, columns].clone(), columns)
                pull += (error[:, columns] - old) @ layer.gram[columns]
            if torch.equal(before, error):
                break
        return levels

    def _sweep(
        self,
        layer: Layer,
        levels: torch.Tensor,
        error: torch.Tensor,
        pull: torch.Tensor,
        columns: slice,
    ) -> None:
        """Move the levels of some columns in place; ``pull`` is e H of these columns."""
        for j in range(columns.start, columns.stop):
            own = layer.gram[j, j]
            others = pull[:, j - columns.start] / own - error[:, j]
            levels[:, j] = layer.levels(layer.weight[:, j] + others, j)
            new = layer.weight[:, j] - levels[:, j] * layer.scale[:, j]
            pull += (new - error[:, j])[:, None] * layer.gram[j, columns]
            error[:, j] = new

"""gptq: each weight is rounded to make up for the error of those rounded before it.

E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, equations 2 and 3; in the form without an inverse of J. Chee et al.,
"QuIP", NeurIPS 2023, section 3, which gives the same levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edgekit.quantize.rounding import Layer, round_weights

if TYPE_CHECKING:
    from edgekit.model import Graph
    from edgekit.quantize.calibrate import Seen
    from edgekit.quantize.scales import ScaleTable


@dataclass(frozen=True)
class Gptq:
    """q_j = round((w_j + sum_(i<j) (w_i - s_i q_i) F_ij) / s_j), with F = R / diag(R) - I.

    R is upper triangular with H = R R^T, H = sum x x^T of the layer's inputs. Then the error
    e = w - s q loses  e^T H e = sum_j R_jj^2 (e_j + sum_(i<j) e_i F_ij)^2, and q_j makes term j as
    small as it can be. Inputs are those of the float model.

    Attributes:
        damping: share of H's mean diagonal that is added to the diagonal.
        by_size: whether the inputs with the largest H_jj come first. Groups keep their scales.
        block: columns between two updates of all that are left.
    """

    damping: float = 0.01
    by_size: bool = True
    block: int = 128
    products: bool = True

    def round(self, graph: Graph, table: ScaleTable, seen: Seen) -> Graph:
        """The graph with every weight as scale x level, and biases corrected."""
        return round_weights(graph, table, seen, self.damping, self.levels)

    def levels(self, layer: Layer) -> torch.Tensor:
        """Levels (out, K) as float64."""
        order = torch.arange(len(layer.gram))
        if self.by_size:
            order = layer.gram.diagonal().argsort(descending=True, stable=True)
        sorted_ = Layer(
            layer.weight[:, order],
            layer.scale[:, order],
            layer.gram[order][:, order],
            layer.dtype,
            None if layer.zero is None else layer.zero[:, order],
        )
        levels = torch.empty_like(layer.weight)
        levels[:, order] = self._in_order(sorted_)
        return levels

    def _in_order(self, layer: Layer) -> torch.Tensor:
        root = upper_root(layer.gram)
        feedback = (root / root.diagonal()).triu(1)
        levels, error = torch.zeros_like(layer.weight), torch.zeros_like(layer.weight)
        for start in range(0, len(root), self.block):
            end = min(start + self.block, len(root))
            wanted = layer.weight[:, start:end] + error[:, :start] @ feedback[:start, start:end]
            for j in range(start, end):
                levels[:, j] = layer.levels(wanted[:, j - start], j)
                error[:, j] = layer.weight[:, j] - levels[:, j] * layer.scale[:, j]
                wanted += error[:, j, None] * feedback[j, start:end]
        return levels


def upper_root(gram: torch.Tensor) -> torch.Tensor:
    """R, upper triangular, with R R^T = H; H's diagonal grows until there is one."""
    more = float(gram.diagonal().mean()) * 1e-6
    while True:
        root, failed = torch.linalg.cholesky_ex(gram.flip(0, 1))
        if not failed:
            upper: torch.Tensor = root.flip(0, 1)
            return upper
        gram = gram + more * torch.eye(len(gram), dtype=gram.dtype)
        more *= 10

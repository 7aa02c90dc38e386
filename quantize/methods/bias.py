"""bias: a layer's bias takes up the mean error that rounding its weight leaves.

M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV
2019, section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.edit import Editor
from edgekit.quantize.rounding import correct_bias, find_weights
from edgekit.quantize.weights import rounded

if TYPE_CHECKING:
    from edgekit.model import Graph
    from edgekit.quantize.calibrate import Seen
    from edgekit.quantize.scales import ScaleTable


@dataclass(frozen=True)
class BiasCorrection:
    """b' = b - (Wq - W) E[x], with Wq the weight rounded to the nearest level.

    A weight that is scale x level already has no error left: the methods that round correct the
    biases of their own layers. Left as they are: layers without a bias, since adding one adds an
    operator, and biases and weights that more than one call reads. The mean that rounding the
    input itself adds is not counted.
    """

    products: bool = False

    def round(self, graph: Graph, table: ScaleTable, seen: Seen) -> Graph:
        """The graph with corrected biases; its weights are as they were."""
        editor = Editor(graph)
        for weight in find_weights(editor, table):
            statistics = seen.by_site.get(f"{weight.site.module}.input")
            if statistics is not None:
                value = rounded(weight.value, table.sites[weight.site.name])
                correct_bias(editor, weight, value, statistics)
        return editor.done()

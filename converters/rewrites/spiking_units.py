"""spiking_units: QCFS activations in plain operators, folded or as neurons that fire.

With z = x T / threshold, whose factor is stored, a folded unit is

    y = scale clip(floor(z + 1/2), 0, T)

and a temporal one its T steps (see ``operators/qcfs.py``). It comes after quantization: what reads
a unit is quantized with the unit's own scale (``quantize/spiking/units.py``), and so exactly. In
half precision all stays in float32: a level must not depend on how its unit was lowered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph


def rewrite(graph: Graph) -> Graph:
    """The graph with every ``edgekit::qcfs`` written out."""
    from edgekit.edit import Editor

    editor = Editor(graph)
    for node in editor.calls("edgekit.qcfs.default"):
        editor.replace(node, _written_out(editor, node))
    return editor.done()


def _written_out(editor: Editor, node: Node) -> Node:
    from edgekit.operators.qcfs import of_levels

    x, _, scale, steps, _, signed, form = editor.arguments(node)

    def unit(x: Tensor, factor: Tensor) -> Tensor:
        return of_levels(x * factor, scale, steps, signed, form)

    return editor.trace(unit, x, stored_factor(editor, node), like=node, half=frozenset())[0]


def stored_factor(editor: Editor, node: Node) -> Node:
    """What a unit's input is multiplied by to give z, as a constant."""
    from edgekit.operators.qcfs import per_threshold

    x, threshold, _, steps, axis, *_ = editor.arguments(node)
    stored = editor.tensor(threshold)
    if stored is None:
        raise TypeError(f"{node.name} has a computed threshold")
    factor = per_threshold(x.meta["val"], stored.detach(), steps, axis)
    return editor.buffer(f"{node.name}_levels", factor)

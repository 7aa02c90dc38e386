"""Units: which spiking unit a quantized tensor comes from, and what a level of it is.

What a unit gives is its scale times a whole number (``operators/qcfs.py``). Quantized with that
scale, it is stored as that number: nothing is rounded, and a unit's levels are those of the
product that reads them. An 8-bit float stores numbers up to 16 exactly, and larger ones nearly.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.quantize.sites import Site

UNIT = "edgekit.qcfs.default"
#: Which argument of the call that a site names is the site's tensor.
PLACES = {"input": 0, "query": 0, "key": 1, "value": 2}
#: Operators that only move the values of their first argument.
_MOVES = {
    str(operator.getitem),
    *(
        f"aten.{name}"
        for name in "reshape.default view.default _unsafe_view.default flatten.using_ints "
        "unflatten.int permute.default transpose.int t.default movedim.int unsqueeze.default "
        "squeeze.default squeeze.dim squeeze.dims expand.default repeat.default clone.default "
        "contiguous.default alias.default detach.default dropout.default unbind.int "
        "chunk.default split.Tensor split_with_sizes.default select.int slice.Tensor "
        "roll.default flip.default".split()
    ),
}
#: Those that put a constant beside them, which must be zero, a level of every unit.
_PADS = ("aten.pad.default", "aten.constant_pad_nd.default")


def unit_behind(value: Any) -> Node | None:
    """The call of the unit that gives a tensor, through what only moves values, or None."""
    call: Node | None = moved_from(value)
    return call if str(getattr(call, "target", "")) == UNIT else None


def moved_from(value: Any) -> Any:
    """What gives a tensor's values, before they were only moved."""
    while str(getattr(value, "target", "")) in _MOVES or _pads_zero(value):
        value = value.args[0]
    return value


def scale_behind(editor: Editor, call: Node, site: Site) -> float | None:
    """The scale of the unit that feeds an activation site of ``call``, or None."""
    place = PLACES.get(site.kind)
    unit = None if place is None else unit_behind(call.args[place])
    if unit is None:
        return None
    scale: float = editor.arguments(unit)[2]
    return scale


def _pads_zero(value: Any) -> bool:
    pads = str(getattr(value, "target", "")) in _PADS
    return pads and all(each in ("constant", None, 0) for each in value.args[2:])

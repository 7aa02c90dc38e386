"""What each MIL operator computes: tables from its name to a small function.

A function takes the operator's parameters by their MIL names, with MIL's defaults, and
returns a tensor (or a list of them). Float16 tensors arrive as float32 and results are
rounded to the declared type afterwards, by ``edgekit.converters.mil``: so a file here holds
only mathematics. Parameters that MIL demands constant come as Python values, unless they
are arrays of floats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Table = dict[str, Callable[..., Any]]


def table() -> Table:
    """Every operator the evaluator knows."""
    from edgekit.converters.mil_ops import dense, elementwise, indexing, reduce, resize, shape

    rooms = (dense, elementwise, indexing, reduce, resize, shape)
    return {name: compute for room in rooms for name, compute in room.table().items()}

"""Skip: what stands in the place of a block that was dropped.

It gives the streams that it takes on as they are. The blocks after it keep their places, and so
what a model looks up by place: the mask of a layer's type, a layer of a text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

#: What a block gives: the name of an argument (``x``, or ``xs.0`` for an item of it), None, or
#: ``["tuple", ...]`` or ``["list", ...]`` of such.
Form = Any


class Skip(nn.Module):
    """Takes whatever the block takes, by place or by name.

    Args:
        parameters: the names of the block's parameters, in order.
        gives: what it returns, in the block's own form.
        attributes: (name, value) of the block's plain attributes, which a model may ask for.
    """

    def __init__(
        self, parameters: Sequence[str], gives: Form, attributes: Sequence[tuple[str, Any]]
    ) -> None:
        super().__init__()
        self._arguments = {
            "parameters": list(parameters),
            "gives": gives,
            "attributes": [list(pair) for pair in attributes],
        }
        for name, value in attributes:
            setattr(self, name, value)

    def arguments(self) -> dict[str, Any]:
        """What it is made of."""
        return self._arguments

    def forward(self, *args: Any, **named: Any) -> Any:
        """The streams, unchanged."""
        given = dict(zip(self._arguments["parameters"], args, strict=False)) | named
        return _filled(self._arguments["gives"], given)


def make(
    parameters: Sequence[str], gives: Form, attributes: Sequence[tuple[str, Any]] = ()
) -> Skip:
    """One that passes its arguments on; see ``Skip``."""
    return Skip(parameters, gives, attributes)


def _filled(gives: Form, given: dict[str, Any]) -> Any:
    if gives is None:
        return None
    if isinstance(gives, str):
        name, _, item = gives.partition(".")
        return given[name][int(item)] if item else given[name]
    kind, *items = gives
    filled = [_filled(item, given) for item in items]
    return tuple(filled) if kind == "tuple" else filled

"""The table of operators: one torch function each, with ONNX's own names for its attributes.

A function's positional parameters are the operator's inputs, its keywords the attributes. Where
newer opsets turn an attribute into an input (``axes``, ``split``, ...), one parameter serves both.

Values are tensors, or *known*: NumPy arrays of what depends on shapes alone (``Shape`` ->
``Gather`` -> ``Concat`` -> ``Reshape``). Known arithmetic is done in NumPy while the graph is
made and leaves no trace in it. A dynamic dimension is a ``torch.SymInt`` in an array of objects.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
import torch

from edgekit.errors import EdgekitError

Known = np.ndarray[Any, Any]
Function = TypeVar("Function", bound=Callable[..., Any])

_ROOMS = ("elementwise", "shaping", "indexing", "reducing", "spatial", "resizing", "norms")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Operator:
    """How an operator is computed.

    Attributes:
        name: in ONNX.
        function: on tensors.
        known: positions of the inputs that must be known when the graph is made.
        numbers: whether it takes a Python number in place of a 0-d tensor.
        keywords: the attributes that it understands; besides them ``opset`` (of the file) and
            ``count`` (of outputs) are given where they are named.
        shortcut: the same on known values alone; it may answer NotImplemented.
    """

    name: str
    function: Callable[..., Any]
    known: frozenset[int]
    numbers: bool
    keywords: frozenset[str]
    shortcut: Callable[..., Any] | None = None

    def __call__(self, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
        """Compute; ``inputs`` are tensors, known values, numbers or None (absent)."""
        if self.shortcut and not any(isinstance(x, torch.Tensor) for x in inputs):
            result = self.shortcut(*map(_array, inputs), **attributes)
            if result is not NotImplemented:
                return result
        live = any(isinstance(x, torch.Tensor) and x.dtype != torch.bool for x in inputs)
        given = [self._argument(place, x, live) for place, x in enumerate(inputs)]
        return self.function(*given, **attributes)

    def _argument(self, place: int, value: Any, live: bool) -> Any:
        if place in self.known:
            if isinstance(value, torch.Tensor):
                raise EdgekitError(
                    f"{self.name} depends on data where edgekit needs a fixed value.",
                    f"Its input {place} is computed from the model's inputs, not their shapes.",
                    "Export the model with fixed shapes, or give fixed sizes with --input.",
                )
            return value
        if not isinstance(value, np.ndarray):
            return value
        return value.item() if self.takes_number(value, live) else tensor(value)

    def takes_number(self, value: Known, live: bool) -> bool:
        """Whether a known value enters as a Python number: 0-d, beside a tensor."""
        return self.numbers and live and value.ndim == 0


TABLE: dict[str, Operator] = {}
#: On known values alone.
_SHORTCUTS: dict[str, Callable[..., Any]] = {}


def operator(*names: str, known: str = "", numbers: bool = False) -> Callable[[Function], Function]:
    """Put a function into the table.

    Args:
        names: of the ONNX operators that it computes.
        known: the parameters that must be known, separated by spaces.
        numbers: it takes a number in place of a 0-d tensor.
    """

    def register(function: Function) -> Function:
        for name in names:
            enter(name, function, known, numbers)
        return function

    return register


def enter(name: str, function: Callable[..., Any], known: str = "", numbers: bool = False) -> None:
    """Put one operator into the table."""
    parameters = inspect.signature(function).parameters
    order = [p.name for p in parameters.values() if p.kind in _POSITIONAL]
    TABLE[name] = Operator(
        name=name,
        function=function,
        known=frozenset(order.index(parameter) for parameter in known.split()),
        numbers=numbers,
        keywords=frozenset(parameters),
    )


def shortcut(*names: str) -> Callable[[Function], Function]:
    """How operators are computed on known values."""

    def register(function: Function) -> Function:
        _SHORTCUTS.update(dict.fromkeys(names, function))
        return function

    return register


@cache
def operators() -> dict[str, Operator]:
    """The whole table, by ONNX name."""
    for room in ("known", *_ROOMS):
        import_module(f"{__package__}.{room}")
    return {name: replace(run, shortcut=_SHORTCUTS.get(name)) for name, run in TABLE.items()}


def known(values: Sequence[Any]) -> Known:
    """A known 1-d array of sizes; of objects where one is symbolic."""
    if all(isinstance(value, int) for value in values):
        return np.array(values, dtype=np.int64)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def ints(value: Known) -> list[Any]:
    """The sizes in a known value, as Python integers or symbols."""
    found: list[Any] = value.reshape(-1).tolist()
    return found


def tensor(value: Known) -> torch.Tensor:
    """A known value as a tensor."""
    if value.dtype == object:
        flat = [torch.scalar_tensor(size, dtype=torch.int64) for size in ints(value)]
        return torch.stack(flat).reshape(value.shape)
    plain = np.ascontiguousarray(value).reshape(value.shape)
    return torch.from_numpy(plain if plain.flags.writeable else plain.copy())


def _array(value: Any) -> Any:
    return value if value is None or isinstance(value, np.ndarray) else np.asarray(value)

"""An ONNX graph as a torch module: its nodes as steps, run in order."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import numpy as np
import torch

from edgekit.errors import EdgekitError
from edgekit.families.onnx_graph.table import Operator, tensor


@dataclass(frozen=True)
class Argument:
    """Where a step takes one of its inputs from.

    Attributes:
        source: a ``value`` of the run by name, a tensor ``stored`` in the module by path, or
            something ``fixed``: a known array, a number, None.
    """

    source: Literal["value", "stored", "fixed"]
    item: Any

    def get(self, module: torch.nn.Module, values: dict[str, Any]) -> Any:
        """The input itself."""
        if self.source == "value":
            return values[self.item]
        return attrgetter(self.item)(module) if self.source == "stored" else self.item


@dataclass(frozen=True)
class Step:
    """One node.

    Attributes:
        run: the operator, or the path of the module that computes it.
        outputs: names of the values that it makes.
        frees: names of the values that nobody needs after it.
    """

    run: Operator | str
    arguments: tuple[Argument, ...]
    attributes: dict[str, Any]
    outputs: tuple[str, ...]
    frees: tuple[str, ...] = ()

    def __call__(self, module: torch.nn.Module, values: dict[str, Any]) -> None:
        """Compute, and put the outputs among the values."""
        inputs = [argument.get(module, values) for argument in self.arguments]
        if isinstance(self.run, str):
            results = module.get_submodule(self.run)(*inputs)
        else:
            results = self.run(inputs, self.attributes)
        several = results if isinstance(results, (tuple, list)) else (results,)
        values.update(zip(self.outputs, several, strict=False))
        for name in self.frees:
            values.pop(name, None)


class Group(torch.nn.Module):
    """A place in the tree of modules that computes nothing itself."""


@dataclass(frozen=True)
class Parameter:
    """One input: its name in ``forward``, its name in the file, its shape there."""

    name: str
    value: str
    shape: tuple[int | str, ...]


class OnnxModule(Group):
    """Takes the file's inputs by name, gives a tuple of its outputs."""

    def setup(
        self, parameters: Sequence[Parameter], steps: Sequence[Step], outputs: Sequence[Argument]
    ) -> None:
        """Say what is computed; the tensors and layers are already in place."""
        self._inputs, self._steps, self._results = tuple(parameters), tuple(steps), tuple(outputs)

    def _run(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = inspect.signature(self.forward).bind(*args, **kwargs).arguments
        values: dict[str, Any] = {}
        for parameter in self._inputs:
            self._check(parameter, given[parameter.name])
            values[parameter.value] = given[parameter.name]
        for step in self._steps:
            step(self, values)
        results = (result.get(self, values) for result in self._results)
        return tuple(tensor(r) if isinstance(r, np.ndarray) else r for r in results)

    def _check(self, parameter: Parameter, value: torch.Tensor) -> None:
        """A size that is fixed in the file may be written into its nodes too."""
        for axis, size in enumerate(parameter.shape):
            if isinstance(size, int) and value.shape[axis] != size:
                which = "the batch" if axis == 0 else f"dimension {axis}"
                raise EdgekitError(
                    f"The ONNX file fixes {which} of input {parameter.name} to {size}.",
                    f"It was given {value.shape[axis]}.",
                    f"Pass --batch {size}, or export the file with a dynamic batch."
                    if axis == 0
                    else "Give data of that size, or export the file with a dynamic dimension.",
                )


def named(parameters: Sequence[Parameter]) -> OnnxModule:
    """An empty module whose ``forward`` has these parameters: torch.export goes by them."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD

    def forward(
        self: OnnxModule, *args: torch.Tensor, **kwargs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return self._run(*args, **kwargs)

    names = ["self", *(parameter.name for parameter in parameters)]
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in names])
    forward.__signature__ = signature  # type: ignore[attr-defined]
    made: OnnxModule = type("OnnxModule", (OnnxModule,), {"forward": forward})()
    return made

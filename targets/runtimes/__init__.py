"""Runtimes: one file per way to run an artifact.

Each file has these names, used by verify and bench alike:

- ``OPENS``: suffixes of the artifacts that it runs, such as ``(".onnx",)``.
- ``REQUIRES``: ``{import name: pip name}`` of the packages it needs.
- ``THREADED``: whether it computes on the CPU with as many threads as it is given.
- ``open(artifact, threads) -> Runtime``; where it cannot run, an EdgekitError says why.
- ``unavailable() -> str``: why artifacts cannot run here, in a few words, or ``""``.
- ``untimed() -> str``: why a latency measured here is not the target's, or ``""``.
- ``trace(artifact, inputs) -> Arrays``: intermediate values by name, for finding where drift
  begins. A runtime that keeps none returns its outputs.
- ``layers(artifact, inputs, threads) -> list[Layer]``: what one call spends its time on;
  absent where the runtime does not tell. See ``edgekit.profiling``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from edgekit.find import find, names
from edgekit.model import Dim, Input, State

Arrays = dict[str, np.ndarray[Any, Any]]


def runtime_for(target_runtime: str, format: str) -> str | None:
    """What runs a format's artifacts made for a target; None if only the device can.

    It is the target's own runtime (``Target.runtime``) where that opens such files; an ONNX
    file for a TensorRT target is proven in the converter's, ONNX Runtime.
    """
    converter = find("converters", format)
    suffix = Path(converter.NAME).suffix
    if target_runtime in names("runtimes") and suffix in find("runtimes", target_runtime).OPENS:
        return target_runtime
    runtime: str | None = converter.RUNTIME
    return runtime


class Runtime(ABC):
    """A loaded artifact. Leaving the ``with`` block frees the device."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 - most runtimes hold nothing to give back
        """Free what is held."""

    @property
    @abstractmethod
    def batch(self) -> int | None:
        """Samples that one call takes; None if any number."""

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What a streaming artifact takes in each call beside its states; else nothing."""
        return ()

    @property
    def states(self) -> tuple[State, ...]:
        """What a streaming artifact carries from call to call: its inputs NAME and outputs
        NAME_next.
        """
        return ()

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The sizes that vary in what a streaming artifact takes."""
        shapes = [spec.shape for spec in self.inputs] + [spec.shape for spec in self.states]
        return tuple({dim.name: dim for shape in shapes for dim in _dims(shape)}.values())

    def parts(self) -> dict[str, float]:
        """Median milliseconds of each part of the calls so far, where an artifact has parts."""
        return {}

    def device_times(self) -> dict[str, float]:
        """Milliseconds of the last call: ``to_device``, ``compute``, ``to_host``.

        Empty where the runtime computes in host memory, so that nothing is copied.
        """
        return {}

    @abstractmethod
    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first."""


def _dims(shape: Iterable[int | Dim]) -> list[Dim]:
    return [size for size in shape if isinstance(size, Dim)]


def split(specs: Sequence[Input], outputs: Iterable[str]) -> tuple[list[Input], list[State]]:
    """An artifact's inputs, and its states: those that come back as NAME_next."""
    given = set(outputs)
    states = [State(spec.name, spec.shape, spec.dtype) for spec in specs]
    carried = {state.name for state in states if state.output in given}
    return (
        [spec for spec in specs if spec.name not in carried],
        [state for state in states if state.name in carried],
    )

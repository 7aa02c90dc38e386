"""coreml: run a Core ML package. On macOS in Core ML, elsewhere in the evaluator.

The evaluator (``edgekit.converters.mil``) gives the package's numbers, not its speed: a
latency measured with it says nothing about a device.

However a package carries its states (``edgekit.converters.coreml_states``), they are given here
among the inputs, and come back among the outputs as NAME_next.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.converters.coreml_states import growing
from edgekit.errors import EdgekitError
from edgekit.model import Dim, Input, State
from edgekit.targets.runtimes import Arrays, Runtime

OPENS = (".mlpackage",)
REQUIRES = {"coremltools": "coremltools"}
THREADED = False


def unavailable() -> str:
    """Why no package can be run here: nothing to read it with."""
    found = importlib.util.find_spec("coremltools") is not None
    return "" if found else "coremltools is not installed (pip install coremltools)"


def untimed() -> str:
    """Why a latency measured here says nothing: off macOS, packages are only evaluated."""
    return "" if sys.platform == "darwin" else "Core ML runs on Apple devices only"


def trace(artifact: Path, inputs: Arrays) -> Arrays:
    """Every value that the program computes, by the name of its graph node, for one call."""
    from edgekit.converters.mil import Evaluator

    values = Evaluator(artifact).run_all(_Stream(artifact).given(inputs))
    # coremltools marks what it computes in float16.
    return {name.removesuffix("_cast_fp16"): value for name, value in values.items()}


def open(artifact: Path, threads: int | None = None) -> Runtime:
    """Load an ``.mlpackage``.

    Args:
        artifact: the package.
        threads: for the evaluator; Core ML chooses its own.

    Raises:
        EdgekitError: no such package, coremltools is missing, threads were asked of Core ML,
            or the evaluator lacks an operator (named).
    """
    if not artifact.is_dir():
        raise EdgekitError(
            f"No Core ML package at {artifact}.",
            "An .mlpackage is a folder, and there is none by that name.",
            "Give the path of a package that edgekit built.",
        )
    if unavailable():
        raise EdgekitError(
            f"{artifact} cannot be opened.",
            f"Core ML packages are read with coremltools: {unavailable()}.",
            "Run: pip install 'edgekit[coreml]'",
        )
    if sys.platform == "darwin":
        return _CoreML(artifact, threads)
    return _Evaluated(artifact, threads)


class _Stream:
    """The states of a package, between its caller's form and its own."""

    def __init__(self, artifact: Path) -> None:
        import coremltools

        from edgekit.converters.coreml import STREAM

        metadata = coremltools.utils.load_spec(str(artifact)).description.metadata.userDefined
        said = json.loads(metadata[STREAM]) if STREAM in metadata else {}
        dims = {name: Dim(name, *sizes) for name, sizes in said.get("dims", {}).items()}
        self.inputs = tuple(_input(dims, *spec) for spec in said.get("inputs", ()))
        states = [_input(dims, *spec) for spec in said.get("states", ())]
        self.states = tuple(State(spec.name, spec.shape, spec.dtype) for spec in states)
        #: The names of the parts in which Core ML holds a state.
        self.held: dict[str, list[str]] = said.get("held", {})

    def given(self, inputs: Arrays) -> Arrays:
        """All that the package takes; states that are not given are as before a first call."""
        found = dict(inputs)
        batch = len(next(iter(inputs.values())))
        for state in self.states:
            value = found.pop(state.name) if state.name in found else state.start(batch)
            found |= self._parts(state, value)
        return found

    def taken(self, outputs: Arrays) -> Arrays:
        """What the caller gets of the package's outputs and the states that it holds."""
        found = dict(outputs)
        for state in self.states:
            names = self.held.get(state.name, [state.name])
            parts = [found.pop(f"{name}_next") for name in names]
            whole = sum(parts[1:], start=parts[0].astype(state.dtype))
            found[state.output] = _without_first(state, whole)
        return found

    def _parts(self, state: State, value: np.ndarray[Any, Any]) -> Arrays:
        names = self.held.get(state.name)
        if names is None:
            return {state.name: _with_first(state, value)}
        parts = {}
        for name in names:
            parts[name] = value.astype(np.float16)
            value = value - parts[name]
        return parts


def _input(dims: dict[str, Dim], name: str, sizes: list[int | str], dtype: str) -> Input:
    shape = (dims[size] if isinstance(size, str) else size for size in sizes)
    return Input(name, tuple(shape), dtype)


def _with_first(state: State, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """With the position that is never read, where the state grows."""
    axis = growing(state)
    if axis is None:
        return value
    widths = [(int(place == axis), 0) for place in range(value.ndim)]
    return np.pad(value, widths)


def _without_first(state: State, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    axis = growing(state)
    return value if axis is None else value[(slice(None),) * axis + (slice(1, None),)]


class _Package(Runtime):
    """What is the same wherever a package runs."""

    _stream: _Stream

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What it takes in each call beside its states."""
        return self._stream.inputs

    @property
    def states(self) -> tuple[State, ...]:
        """What it carries from call to call."""
        return self._stream.states


class _Evaluated(_Package):
    """The package in ``edgekit.converters.mil.Evaluator``."""

    def __init__(self, artifact: Path, threads: int | None) -> None:
        from edgekit.converters.mil import Evaluator

        self._stream = _Stream(artifact)
        self._evaluator = Evaluator(artifact)
        self._threads = threads

    @property
    def batch(self) -> int | None:
        """Samples that one call takes; None if any number."""
        return self._evaluator.batch

    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first."""
        with _torch_threads(self._threads):
            return self._stream.taken(self._evaluator.run(self._stream.given(inputs)))


class _CoreML(_Package):
    """The package in Core ML itself, on whatever units it chooses."""

    def __init__(self, artifact: Path, threads: int | None) -> None:
        import coremltools

        if threads is not None:
            raise EdgekitError(
                f"{artifact} cannot be run with {threads} threads.",
                "Core ML chooses processors and threads itself.",
                "Leave out the number of threads.",
            )
        self._stream = _Stream(artifact)
        self._model = coremltools.models.MLModel(str(artifact))
        arrays = {i.name: i.type.multiArrayType for i in self._model.get_spec().description.input}
        first = next(iter(arrays.values()))
        self._dtypes = {
            name: np.int32 if array.dataType == array.INT32 else np.float32
            for name, array in arrays.items()
        }
        self._batch = None if first.WhichOneof("ShapeFlexibility") else int(first.shape[0])
        self._held: Any = self._model.make_state() if self._stream.held else None

    @property
    def batch(self) -> int | None:
        """Samples that one call takes; None if any number."""
        return self._batch

    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first."""
        given = self._stream.given(inputs)
        typed = {name: given.pop(name).astype(dtype) for name, dtype in self._dtypes.items()}
        for name, value in given.items():
            self._held.write_state(name, value)
        held_in = {} if self._held is None else {"state": self._held}
        outputs: Arrays = self._model.predict(typed, **held_in)
        held = {f"{name}_next": self._held.read_state(name) for name in given}
        return self._stream.taken({**outputs, **held})


@contextlib.contextmanager
def _torch_threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)

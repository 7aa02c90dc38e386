"""coreml: run a Core ML package. On macOS in Core ML, elsewhere in the evaluator.

The evaluator (``edgekit.converters.mil``) gives the package's numbers, not its speed: a
latency measured with it says nothing about a device.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.targets.runtimes import Arrays, Runtime

OPENS = (".mlpackage",)
REQUIRES = {"coremltools": "coremltools"}


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

    values = Evaluator(artifact).run_all(inputs)
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


class _Evaluated(Runtime):
    """The package in ``edgekit.converters.mil.Evaluator``."""

    def __init__(self, artifact: Path, threads: int | None) -> None:
        from edgekit.converters.mil import Evaluator

        self._evaluator = Evaluator(artifact)
        self._threads = threads

    @property
    def batch(self) -> int | None:
        """Samples that one call takes; None if any number."""
        return self._evaluator.batch

    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first."""
        with _torch_threads(self._threads):
            return self._evaluator.run(inputs)


class _CoreML(Runtime):
    """The package in Core ML itself, on whatever units it chooses."""

    def __init__(self, artifact: Path, threads: int | None) -> None:
        import coremltools
        import numpy as np

        if threads is not None:
            raise EdgekitError(
                f"{artifact} cannot be run with {threads} threads.",
                "Core ML chooses processors and threads itself.",
                "Leave out the number of threads.",
            )
        self._model = coremltools.models.MLModel(str(artifact))
        arrays = {i.name: i.type.multiArrayType for i in self._model.get_spec().description.input}
        first = next(iter(arrays.values()))
        self._dtypes = {
            name: np.int32 if array.dataType == array.INT32 else np.float32
            for name, array in arrays.items()
        }
        self._batch = None if first.WhichOneof("ShapeFlexibility") else int(first.shape[0])

    @property
    def batch(self) -> int | None:
        """Samples that one call takes; None if any number."""
        return self._batch

    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first."""
        typed = {name: value.astype(self._dtypes[name]) for name, value in inputs.items()}
        outputs: Arrays = self._model.predict(typed)
        return outputs


@contextlib.contextmanager
def _torch_threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""onnxruntime: runs ONNX on this machine's CPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.converters.interface import DIMS
from edgekit.errors import EdgekitError
from edgekit.model import Dim, Input, State
from edgekit.targets.runtimes import Arrays, Runtime, split

if TYPE_CHECKING:
    from edgekit.profiling import Layers

OPENS = (".onnx",)
REQUIRES = {"onnxruntime": "onnxruntime"}
THREADED = True


def unavailable() -> str:
    """Why no ONNX file can run here: it always can."""
    return ""


def untimed() -> str:
    """Why a latency measured here would mean nothing: it means what it says."""
    return ""


def open(artifact: Path, threads: int | None = None) -> Session:
    """Load an ONNX file; ``threads`` None takes all cores.

    Raises:
        EdgekitError: ONNX Runtime refuses the file.
    """
    return Session(_session(str(artifact), str(artifact), threads))


def trace(artifact: Path, inputs: Arrays) -> Arrays:
    """Every float value that the graph computes, by name, for one call."""
    return Session(_session(with_all_values(artifact), str(artifact), None)).infer(inputs)


def layers(artifact: Path, inputs: Arrays, threads: int | None = None) -> Layers:
    """What one call spends its time on, by ONNX Runtime's profiler."""
    from edgekit.profiling.onnxruntime import layers

    return layers(artifact, inputs, lambda options: open_session(artifact, threads, options))


def open_session(artifact: Path, threads: int | None, options: Any) -> Any:
    """ONNX Runtime's session, with options of the caller's, as those for its profiler."""
    return _session(str(artifact), str(artifact), threads, options)


def with_all_values(artifact: Path) -> bytes:
    """An ONNX file whose outputs are every float value that it computes."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(artifact)))
    known = {value.name for value in model.graph.output}
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    model.graph.output.extend(
        value
        for value in model.graph.value_info
        if value.name not in known and value.type.tensor_type.elem_type in floats
    )
    serialized: bytes = model.SerializeToString()
    return serialized


class Session(Runtime):
    """An open ONNX file."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._names = [value.name for value in session.get_outputs()]

    def close(self) -> None:
        """Free the session."""
        self._session = None

    @property
    def batch(self) -> int | None:
        """Samples that one call takes; None if any number."""
        first = self._session.get_inputs()[0].shape[0]
        return first if isinstance(first, int) else None

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What it takes in each call beside its states."""
        return tuple(split(self._declared(), self._names)[0])

    @property
    def states(self) -> tuple[State, ...]:
        """What it carries from call to call."""
        return tuple(split(self._declared(), self._names)[1])

    def _declared(self) -> list[Input]:
        """Its inputs; sizes that vary have the ranges that the file states."""
        stated = self._session.get_modelmeta().custom_metadata_map.get(DIMS, "{}")
        dims = {name: Dim(name, *sizes) for name, sizes in json.loads(stated).items()}
        return [
            Input(value.name, tuple(_size(s, dims) for s in value.shape), numpy_name(value.type))
            for value in self._session.get_inputs()
        ]

    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first."""
        try:
            outputs = self._session.run(None, inputs)
        except Exception as error:
            raise EdgekitError("ONNX Runtime cannot run the model.", str(error)) from error
        return dict(zip(self._names, outputs, strict=True))


def _size(size: int | str | None, dims: Mapping[str, Dim]) -> int | Dim:
    if isinstance(size, int):
        return size
    return dims.get(size or "", Dim(size or "", 0, 1, sys.maxsize))


def numpy_name(kind: str) -> str:
    """NumPy's name of an ONNX type, such as ``tensor(float)``."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


def _session(model: str | bytes, name: str, threads: int | None, options: Any = None) -> Any:
    import onnxruntime

    options = with_threads(options or onnxruntime.SessionOptions(), threads)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EdgekitError(f"ONNX Runtime cannot load {name}.", str(error)) from error


def with_threads(options: Any, threads: int | None) -> Any:
    """Session options with a number of threads, None for all cores, and no warnings on stderr."""
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    return options

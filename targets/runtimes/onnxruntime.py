"""onnxruntime: runs ONNX on this machine's CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.targets.runtimes import Arrays, Runtime

OPENS = (".onnx",)
REQUIRES = {"onnxruntime": "onnxruntime"}


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

    def random_inputs(self) -> Arrays:
        """Seeded random numbers in the shapes that the file declares; dynamic sizes are 1."""
        import numpy as np

        random = np.random.default_rng(0)
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        drawn: Arrays = {}
        for value in self._session.get_inputs():
            shape = [size if isinstance(size, int) else 1 for size in value.shape]
            if value.type in kinds:
                drawn[value.name] = random.standard_normal(shape).astype(kinds[value.type])
            else:
                dtype = value.type.removeprefix("tensor(").removesuffix(")")
                drawn[value.name] = np.zeros(shape, dtype=dtype)
        return drawn

    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first."""
        try:
            outputs = self._session.run(None, inputs)
        except Exception as error:
            raise EdgekitError("ONNX Runtime cannot run the model.", str(error)) from error
        return dict(zip(self._names, outputs, strict=True))


def _session(model: str | bytes, name: str, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EdgekitError(f"ONNX Runtime cannot load {name}.", str(error)) from error

"""onnxruntime_tensorrt: runs ONNX on an NVIDIA GPU by ONNX Runtime's TensorRT provider.

It builds the engines as it loads the file, and for sizes that vary at the first call, each time
anew: no cache is kept. No precision flag is set: the graph's own types are asked for. What
TensorRT does not take is left to the CUDA provider, and said. ONNX Runtime sees an engine as one
node, so it tells no layers: the ``tensorrt`` runtime does.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from edgekit.targets.runtimes import Arrays, onnxruntime_cuda
from edgekit.targets.runtimes import onnxruntime_device as device
from edgekit.targets.runtimes.onnxruntime import with_all_values, with_threads

OPENS = (".onnx",)
REQUIRES = {"onnxruntime": "onnxruntime"}
THREADED = False
PROVIDER = "TensorrtExecutionProvider"
#: Each with its options, the first choice first.
PROVIDERS = [
    (PROVIDER, {"device_id": "0"}),
    (onnxruntime_cuda.PROVIDER, onnxruntime_cuda.OPTIONS),
]


def unavailable() -> str:
    """Why no ONNX file can run in TensorRT here, or ``""``."""
    return device.built_without(PROVIDER)


def untimed() -> str:
    """Why a latency cannot be measured here: as ``unavailable``, in fewer words."""
    return device.briefly(unavailable())


def open(artifact: Path, threads: int | None = None) -> device.DeviceSession:
    """Load an ONNX file on the first GPU, and build its engines.

    Args:
        artifact: an ``.onnx`` file.
        threads: of the CPU, for nodes that the GPU does not take.

    Raises:
        EdgekitError: the provider is not there or does not start, or refuses the file.
    """
    return device.DeviceSession(_session(artifact, str(artifact), threads))


def trace(artifact: Path, inputs: Arrays) -> Arrays:
    """Every float value that the graph computes, by name: an engine that is asked for them all."""
    session = _session(with_all_values(artifact), str(artifact), None)
    return device.DeviceSession(session).infer(inputs)


def _session(artifact: Path | bytes, name: str, threads: int | None) -> Any:
    import onnxruntime

    device.require(unavailable(), name, PROVIDER)
    device.preload("tensorrt")
    options = with_threads(onnxruntime.SessionOptions(), threads)
    session = device.open_session(artifact, name, options, PROVIDERS, _fix())
    device.check_provider(session, PROVIDER, name, _fix())
    return session


def _fix() -> str:
    if importlib.util.find_spec("tensorrt") is None:
        return "Install TensorRT 10 of your CUDA version, such as: pip install 'tensorrt<11'"
    return "Use the TensorRT that this onnxruntime was built for, with its CUDA libraries."

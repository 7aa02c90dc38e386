"""onnxruntime_cuda: runs ONNX on an NVIDIA GPU by ONNX Runtime's CUDA provider.

float32 is computed as such: the provider would use TF32, of 10 bits, on GPUs that have it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.targets.runtimes import Arrays
from edgekit.targets.runtimes import onnxruntime_device as device
from edgekit.targets.runtimes.onnxruntime import with_all_values, with_threads

if TYPE_CHECKING:
    from edgekit.profiling import Layers

OPENS = (".onnx",)
REQUIRES = {"onnxruntime": "onnxruntime"}
THREADED = False
PROVIDER = "CUDAExecutionProvider"
OPTIONS = {"device_id": "0", "use_tf32": "0"}


def unavailable() -> str:
    """Why no ONNX file can run on a GPU here, or ``""``."""
    return device.built_without(PROVIDER)


def untimed() -> str:
    """Why a latency cannot be measured here: as ``unavailable``, in fewer words."""
    return device.briefly(unavailable())


def open(artifact: Path, threads: int | None = None) -> device.DeviceSession:
    """Load an ONNX file on the first GPU.

    Args:
        artifact: an ``.onnx`` file.
        threads: of the CPU, for nodes that the GPU does not take.

    Raises:
        EdgekitError: the provider is not there or does not start, or refuses the file.
    """
    return device.DeviceSession(_session(artifact, str(artifact), threads))


def trace(artifact: Path, inputs: Arrays) -> Arrays:
    """Every float value that the graph computes, by name, for one call."""
    session = _session(with_all_values(artifact), str(artifact), None)
    return device.DeviceSession(session).infer(inputs)


def layers(artifact: Path, inputs: Arrays, threads: int | None = None) -> Layers:
    """What one call spends its time on, each kernel waited for, in a process of its own."""
    from edgekit.profiling.waiting import layers

    return layers(__name__.rpartition(".")[2], artifact, inputs, threads)


def open_session(artifact: Path, threads: int | None, options: Any) -> Any:
    """ONNX Runtime's session, with options of the caller's, as those for its profiler."""
    return _session(artifact, str(artifact), threads, options)


def _session(artifact: Path | bytes, name: str, threads: int | None, options: Any = None) -> Any:
    import onnxruntime

    device.require(unavailable(), name, PROVIDER)
    device.preload()
    options = with_threads(options or onnxruntime.SessionOptions(), threads)
    session = device.open_session(artifact, name, options, [(PROVIDER, OPTIONS)])
    device.check_provider(session, PROVIDER, name, f"To get its libraries: {device.GPU_PACKAGE}.")
    return session

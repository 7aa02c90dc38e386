"""onnxruntime_tensorrt_rtx: runs ONNX on an RTX GPU by ONNX Runtime's TensorRT for RTX provider.

The provider is a library of its own, in the package ``onnxruntime-ep-nv-tensorrt-rtx`` (0.5 was
read), which any onnxruntime of 1.24 or later takes. It is registered once a process; its devices
are then asked for, since it has no place among the providers that are part of ONNX Runtime.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

from edgekit import packages
from edgekit.errors import EdgekitError
from edgekit.targets.runtimes import Arrays
from edgekit.targets.runtimes import onnxruntime_device as device
from edgekit.targets.runtimes.onnxruntime import with_all_values, with_threads

OPENS = (".onnx",)
REQUIRES = {"onnxruntime": "onnxruntime"}
THREADED = False
#: Not among the former, which everyone is told to install: it is for those who have the GPU.
PLUGIN = {"onnxruntime_ep_nv_tensorrt_rtx": "onnxruntime-ep-nv-tensorrt-rtx"}
PROVIDER = "NvTensorRTRTXExecutionProvider"


def unavailable() -> str:
    """Why no ONNX file can run in TensorRT for RTX here, with the remedy, or ``""``."""
    if packages.missing(PLUGIN):
        pips = PLUGIN.values()
        return f"{', '.join(pips)} is not installed ({packages.install_command(pips)})"
    if why := device.no_gpu():
        return why
    try:
        return "" if _devices() else "no RTX GPU (Ampere or later)"
    except EdgekitError as error:
        return error.why


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
    options = with_threads(onnxruntime.SessionOptions(), threads)
    options.add_provider_for_devices(_devices()[:1], {})
    session = device.open_session(artifact, name, options, [])
    device.check_provider(session, PROVIDER, name, "Use the driver that the provider needs.")
    return session


@functools.cache
def _devices() -> list[Any]:
    """The GPUs that the provider can use; registers it at the first call.

    Raises:
        EdgekitError: its library does not load.
    """
    import onnxruntime

    # Loads the provider's libraries.
    provider = importlib.import_module("onnxruntime_ep_nv_tensorrt_rtx")
    try:
        onnxruntime.register_execution_provider_library(PROVIDER, provider.get_library_path())
    except Exception as error:
        raise EdgekitError(f"{PROVIDER} cannot be registered.", str(error)) from error
    return [found for found in onnxruntime.get_ep_devices() if found.ep_name == PROVIDER]

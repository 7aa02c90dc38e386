"""The GPU through the NVIDIA driver's own library: no CUDA toolkit, PyCUDA or torch."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from .problem import NoDevice, Problem

if TYPE_CHECKING:
    import numpy as np


class Cuda:
    """One GPU and a stream."""

    def __init__(self) -> None:
        try:
            self.lib = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise NoDevice(
                "No CUDA device.", f"The NVIDIA driver is not installed: {error}.", "Install it."
            ) from error
        status = self.lib.cuInit(0)
        if status != 0:
            why = f"cuInit returned {status} (100 means that no device is visible)."
            raise NoDevice("No CUDA device.", why, "Run this where an NVIDIA GPU is visible.")
        self.device, self.stream = ctypes.c_int(), ctypes.c_void_p()
        context = ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(self.device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.device)
        self.call("cuCtxSetCurrent", context)
        self.call("cuStreamCreate", ctypes.byref(self.stream), 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a driver function; a status other than 0 is a Problem."""
        status = getattr(self.lib, name)(*arguments)
        if status != 0:
            text = ctypes.c_char_p()
            self.lib.cuGetErrorString(status, ctypes.byref(text))
            raise Problem(f"CUDA's {name} failed.", f"{(text.value or b'?').decode()} ({status}).")

    @property
    def name(self) -> str:
        text = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", text, len(text), self.device)
        return text.value.decode()

    @property
    def capability(self) -> str:
        """The compute capability, such as "8.7"."""
        numbers = []
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
            number = ctypes.c_int()
            self.call("cuDeviceGetAttribute", ctypes.byref(number), attribute, self.device)
            numbers.append(str(number.value))
        return ".".join(numbers)

    def allocate(self, size: int) -> int:
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def free(self, address: int) -> None:
        self.call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, array: np.ndarray[Any, Any]) -> None:
        if not array.nbytes:
            return
        source, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self.call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, size, self.stream)

    def download(self, array: np.ndarray[Any, Any], address: int) -> None:
        if not array.nbytes:
            return
        target, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self.call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), size, self.stream)

    def event(self) -> ctypes.c_void_p:
        """A new event, to be recorded in the stream."""
        made = ctypes.c_void_p()
        self.call("cuEventCreate", ctypes.byref(made), 0)
        return made

    def record(self, event: ctypes.c_void_p) -> None:
        """Note in the event when the GPU has come this far in the stream."""
        self.call("cuEventRecord", event, self.stream)

    def elapsed(self, start: ctypes.c_void_p, end: ctypes.c_void_p) -> float:
        """Milliseconds on the GPU between two recorded events, in steps of about 0.5 us."""
        ms = ctypes.c_float()
        self.call("cuEventElapsedTime", ctypes.byref(ms), start, end)
        return ms.value

    def forget(self, event: ctypes.c_void_p) -> None:
        self.call("cuEventDestroy_v2", event)

    def wait(self) -> None:
        self.call("cuStreamSynchronize", self.stream)

    def close(self) -> None:
        self.call("cuStreamDestroy_v2", self.stream)
        self.call("cuDevicePrimaryCtxRelease_v2", self.device)


def cuda_available() -> bool:
    """Whether there is a CUDA device."""
    try:
        Cuda().close()
    except NoDevice:
        return False
    return True

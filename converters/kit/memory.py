"""Peak memory of a block of code, on the host and on the GPU."""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import Any, Callable, Iterator

from . import nvml
from .sampler import Sampler
from .sensors import text

MEBIBYTE = 2**20


class PeakMemory:
    """Mebibytes of resident memory that a block added at its height; None if unknown."""

    added_mb: float | None = None


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measure the block's peak with Linux's own high-water mark, reset at its start."""
    found = PeakMemory()
    before = _reset_peak()
    yield found
    after = _status("VmHWM")
    if before is not None and after is not None:
        found.added_mb = max(after - before, 0.0) / 2**10


def _reset_peak() -> float | None:
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(field: str) -> float | None:
    """A line of /proc/self/status, in kB."""
    for line in (text("/proc/self/status") or "").splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1])
    return None


class DeviceMemory:
    """What a block took of the GPU's memory, in mebibytes.

    Attributes:
        peak_mb: all that this process held at its height, CUDA's own few hundred included; or
            ``added_mb`` where the driver does not tell processes apart. None without a GPU.
        added_mb: by how much that exceeds what was held at the start.
        how: what was read, and what else is in it.
    """

    def __init__(self) -> None:
        self.peak_mb: float | None = None
        self.added_mb: float | None = None
        self.how = "no NVIDIA GPU"


@contextmanager
def device_memory() -> Iterator[DeviceMemory]:
    """Measure the block's peak on the GPU that CUDA uses first.

    It is sampled some times a second, and at the start and end: what lives shorter may be missed.
    """
    found, source = DeviceMemory(), _source()
    if source is None:
        yield found
        return
    sampler = Sampler(source.sample)
    sampler.start()
    try:
        yield found
    finally:
        sampler.stop()
        source.close()
        source.tell(found)


class _Series:
    """The first and the highest of some bytes; None before there are any."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.peak: int | None = None

    def note(self, used: int | None) -> None:
        if used is not None:
            self.first = used if self.first is None else self.first
            self.peak = used if self.peak is None else max(self.peak, used)

    def added_mb(self) -> float | None:
        if self.first is None or self.peak is None:
            return None
        return (self.peak - self.first) / MEBIBYTE


class _ByNvml:
    """This process's memory by NVML's list; else that of the whole GPU."""

    def __init__(self, gpu: nvml.Nvml) -> None:
        self._gpu, self.close = gpu, gpu.close
        self._own, self._all = _Series(), _Series()

    def sample(self) -> None:
        held = self._gpu.processes()
        if held is not None:
            # A process is listed once it uses the GPU; None bytes are hidden ones.
            self._own.note(held.get(os.getpid(), 0))
        self._all.note(self._gpu.used_bytes())

    def tell(self, found: DeviceMemory) -> None:
        if self._own.peak:
            found.peak_mb, found.added_mb = self._own.peak / MEBIBYTE, self._own.added_mb()
            found.how = "NVML's list of processes"
        else:
            found.peak_mb = found.added_mb = self._all.added_mb()
            found.how = "what was added on the whole GPU: NVML does not list this process"


class _ByCuda:
    """Free memory of a Jetson, whose CPU and GPU share it."""

    def __init__(self, free: Callable[[], int | None], close: Callable[[], None]) -> None:
        self._free, self.close = free, close
        self._used = _Series()

    def sample(self) -> None:
        free = self._free()
        self._used.note(None if free is None else -free)

    def tell(self, found: DeviceMemory) -> None:
        found.peak_mb = found.added_mb = self._used.added_mb()
        found.how = (
            "what cuMemGetInfo lost: CPU and GPU share this memory, all programs' use is in it"
        )


def _source() -> _ByNvml | _ByCuda | None:
    gpu = nvml.open_nvml()
    if gpu is not None:
        if gpu.used_bytes() is not None:
            return _ByNvml(gpu)
        gpu.close()
    try:
        return _by_cuda(ctypes.CDLL(nvml.CUDA_LIBRARY))
    except (OSError, AttributeError):
        return None


def _by_cuda(lib: Any) -> _ByCuda | None:
    """Through the context that CUDA's users share, made now so that it is in the first figure."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    code = lib.cuInit(0) or lib.cuDeviceGet(ctypes.byref(device), 0)
    info = lib.cuMemGetInfo_v2
    if code or lib.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        return None

    def free() -> int | None:
        now, total, before = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p()
        if lib.cuCtxPushCurrent_v2(context):
            return None
        code = info(ctypes.byref(now), ctypes.byref(total))
        lib.cuCtxPopCurrent_v2(ctypes.byref(before))
        return None if code else now.value

    def close() -> None:
        lib.cuDevicePrimaryCtxRelease_v2(device)

    return _ByCuda(free, close)

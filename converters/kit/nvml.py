"""NVIDIA's management library, through ctypes: what a GPU says of itself.

NVML is part of the driver (``libnvidia-ml.so.1``). Each figure is None where this GPU or this
driver does not give it: a Jetson's NVML gives few.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from .sensors import Clock, Read, Zone

LIBRARY, CUDA_LIBRARY = "libnvidia-ml.so.1", "libcuda.so.1"
#: The code of nvmlReturn_t for a buffer that is too small; ``needed`` then says the size.
TOO_SMALL = 7
GRAPHICS_CLOCK, MEMORY_CLOCK = 0, 2
TEMPERATURE_GPU, SLOWDOWN_THRESHOLD = 0, 1
#: nvmlClocksThrottleReasons that slow a GPU down under load; idle, settings and sync do not.
REASONS = {
    0x04: "GPU power limit",
    0x08: "GPU hardware slowdown",
    0x20: "GPU temperature",
    0x40: "GPU temperature (hardware)",
    0x80: "GPU power brake",
}
#: What nvmlDeviceGetComputeRunningProcesses_v3 gives as memory where the driver hides it.
HIDDEN = (1 << 64) - 1


class _Memory(ctypes.Structure):
    _fields_ = [
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    ]


class _Process(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


class Nvml:
    """One GPU: that which CUDA calls device 0. Close it when done."""

    def __init__(self, lib: Any, handle: ctypes.c_void_p, index: int) -> None:
        self._lib, self._handle, self.index = lib, handle, index

    def close(self) -> None:
        """Let go of the library; it counts its users."""
        self._lib.nvmlShutdown()

    @property
    def driver(self) -> str | None:
        """The driver's version."""
        buffer = ctypes.create_string_buffer(96)
        done = self._ok("nvmlSystemGetDriverVersion", buffer, ctypes.c_uint(len(buffer)))
        return buffer.value.decode() if done else None

    @property
    def name(self) -> str | None:
        """The GPU's name."""
        buffer = ctypes.create_string_buffer(96)
        size = ctypes.c_uint(len(buffer))
        done = self._ok("nvmlDeviceGetName", self._handle, buffer, size)
        return buffer.value.decode() if done else None

    @property
    def capability(self) -> str | None:
        """The compute capability, such as "8.9"."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        name = "nvmlDeviceGetCudaComputeCapability"
        done = self._ok(name, self._handle, ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}" if done else None

    def joules(self) -> float | None:
        """Energy since the driver was loaded, by the GPU's own counter (Volta and later)."""
        value = self._get("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong())
        return None if value is None else value / 1e3

    def watts(self) -> float | None:
        """Power now; from Ampere on, the mean of the last second."""
        value = self._get("nvmlDeviceGetPowerUsage", ctypes.c_uint())
        return None if value is None else value / 1e3

    def power_limit(self) -> float | None:
        """Watts that the GPU may draw."""
        value = self._get("nvmlDeviceGetEnforcedPowerLimit", ctypes.c_uint())
        return None if value is None else value / 1e3

    def clocks(self) -> list[Clock]:
        """The clocks of the GPU and of its memory. NVML does not say whether they are locked."""
        kinds = (("GPU", GRAPHICS_CLOCK), ("GPU memory", MEMORY_CLOCK))
        return [Clock(name, self._mhz(kind), self._mhz_limit(kind), None) for name, kind in kinds]

    def _mhz(self, kind: int) -> Read:
        return lambda: self._get("nvmlDeviceGetClockInfo", ctypes.c_uint(), ctypes.c_uint(kind))

    def _mhz_limit(self, kind: int) -> float | None:
        return self._get("nvmlDeviceGetMaxClockInfo", ctypes.c_uint(), ctypes.c_uint(kind))

    def zone(self) -> Zone:
        """The GPU's temperature, and where it slows down."""
        kind = ctypes.c_uint(SLOWDOWN_THRESHOLD)
        limit = self._get("nvmlDeviceGetTemperatureThreshold", ctypes.c_uint(), kind)
        return Zone("GPU", self.celsius, limit)

    def celsius(self) -> float | None:
        """The GPU's temperature now."""
        sensor = ctypes.c_uint(TEMPERATURE_GPU)
        return self._get("nvmlDeviceGetTemperature", ctypes.c_uint(), sensor)

    def throttled(self) -> list[str]:
        """Why the GPU's clock is held down now."""
        for name in (
            "nvmlDeviceGetCurrentClocksThrottleReasons",
            "nvmlDeviceGetCurrentClocksEventReasons",
        ):
            mask = self._get(name, ctypes.c_ulonglong())
            if mask is not None:
                return [reason for bit, reason in REASONS.items() if int(mask) & bit]
        return []

    def used_bytes(self) -> int | None:
        """Memory in use on the whole GPU."""
        memory = _Memory()
        done = self._ok("nvmlDeviceGetMemoryInfo", self._handle, ctypes.byref(memory))
        return int(memory.used) if done else None

    def processes(self) -> dict[int, int | None] | None:
        """Bytes by process id of those that compute here; None bytes where they are hidden."""
        count = ctypes.c_uint(64)
        for _ in range(3):
            held = (_Process * max(count.value, 1))()
            name = "nvmlDeviceGetComputeRunningProcesses_v3"
            code = self._call(name, self._handle, ctypes.byref(count), held)
            if code == 0:
                listed = held[: count.value]
                return {int(p.pid): None if p.used == HIDDEN else int(p.used) for p in listed}
            if code != TOO_SMALL:
                return None
            count.value += 16
        return None

    def others(self) -> int | None:
        """How many other processes compute here; None where this one's own id is not seen."""
        held = self.processes()
        return len(held) - 1 if held is not None and os.getpid() in held else None

    def _get(self, name: str, value: Any, *arguments: Any) -> float | None:
        done = self._ok(name, self._handle, *arguments, ctypes.byref(value))
        return value.value if done else None

    def _ok(self, name: str, *arguments: Any) -> bool:
        return self._call(name, *arguments) == 0

    def _call(self, name: str, *arguments: Any) -> int | None:
        """The function's code; None if this driver has no such function."""
        function = getattr(self._lib, name, None)
        return None if function is None else int(function(*arguments))


def open_nvml() -> Nvml | None:
    """The GPU that CUDA uses first, if there is a driver with NVML and a GPU."""
    try:
        lib = ctypes.CDLL(LIBRARY)
        if lib.nvmlInit_v2() != 0:
            return None
    except (OSError, AttributeError):
        return None
    found = None
    try:
        found = _first(lib)
    except (OSError, AttributeError):  # no CUDA, or one too old to say which device is its first
        return None
    finally:
        if found is None:
            lib.nvmlShutdown()
    return found


def _first(lib: Any) -> Nvml | None:
    """CUDA's device 0, which need not be NVML's: ``CUDA_VISIBLE_DEVICES`` chooses it."""
    count = ctypes.c_uint()
    if lib.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0 or count.value == 0:
        return None
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    handle, index = ctypes.c_void_p(), ctypes.c_uint()
    if chosen.startswith("GPU-"):
        code = lib.nvmlDeviceGetHandleByUUID(chosen.encode(), ctypes.byref(handle))
    elif count.value == 1 and chosen == "0":
        code = lib.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle))
    else:
        code = _by_bus(lib, handle)
    if code != 0:
        return None
    known = lib.nvmlDeviceGetIndex(handle, ctypes.byref(index)) == 0
    return Nvml(lib, handle, index.value if known else 0)


def _by_bus(lib: Any, handle: ctypes.c_void_p) -> int:
    """Find it by the address on the PCI bus that CUDA gives: the two may count differently."""
    cuda, device = ctypes.CDLL(CUDA_LIBRARY), ctypes.c_int()
    address = ctypes.create_string_buffer(64)
    code = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0)
    code = code or cuda.cuDeviceGetPCIBusId(address, len(address), device)
    return int(code or lib.nvmlDeviceGetHandleByPciBusId_v2(address, ctypes.byref(handle)))

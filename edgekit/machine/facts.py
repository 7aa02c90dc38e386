"""The machine and the software that figures depend on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edgekit.converters.kit.device import gpu_facts, power_mode
from edgekit.converters.kit.sensors import clocks, governor, text, zones

#: Packages whose version a figure depends on.
VERSIONED = (
    "torch onnx onnxruntime onnxruntime-gpu openvino coremltools tensorrt tensorrt-rtx numpy"
).split()


def environment(root: str = "/") -> dict[str, Any]:
    """The machine as it is now, and the software.

    What the machine does not say is None, or "unknown" (the governor).

    Args:
        root: the folder that holds ``sys``, ``proc`` and ``etc``; another one is for tests.

    Returns:
        cpu, cores, memory_mb, load_1min, governor, system, python, versions; device (a board's
        name), driver and gpu (NVIDIA's), power_mode (nvpmodel's), clocks_mhz (by name: now,
        limit, locked) and temperature_c (by zone).
    """
    return {
        "cpu": _cpu(root),
        "cores": os.cpu_count(),
        "memory_mb": _memory(root),
        "load_1min": _load(),
        "governor": governor(root) or "unknown",
        "device": text(os.path.join(root, "proc/device-tree/model")),
        **gpu_facts(root),
        "power_mode": power_mode(root),
        "clocks_mhz": {
            clock.name: {"now": clock.mhz(), "limit": clock.limit, "locked": clock.locked}
            for clock in clocks(root)
        },
        "temperature_c": {zone.name: zone.celsius() for zone in zones(root)},
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _load() -> float | None:
    """The mean number of processes that ran or waited in the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def _cpu(root: str) -> str:
    for line in (text(os.path.join(root, "proc/cpuinfo")) or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory(root: str) -> float | None:
    """Mebibytes of memory."""
    for line in (text(os.path.join(root, "proc/meminfo")) or "").splitlines():
        if line.startswith("MemTotal:"):
            return round(float(line.split()[1]) / 2**10, 1)
    return None

"""Machine: what this computer is, and what a block of code takes of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Packages whose version a figure depends on.
_VERSIONED = "torch onnx onnxruntime openvino coremltools tensorrt-rtx numpy".split()


def thread_counts() -> list[int]:
    """One, and all that this process may use."""
    return sorted({1, cores()})


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def environment() -> dict[str, Any]:
    """The machine and the software that figures depend on."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in _VERSIONED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown",
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _reset_peak() -> float | None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return _status("VmRSS")


def _status(field: str) -> float | None:
    """A line of /proc/self/status, in kB."""
    for line in _read("/proc/self/status").splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1])
    return None

"""Machine: what this computer is, and what a block of code takes of it.

What the on-device kit must know of a device too is its code: ``edgekit.converters.kit``.
"""

from __future__ import annotations

import os

from edgekit.converters.kit.memory import DeviceMemory, PeakMemory, device_memory, peak_memory
from edgekit.converters.kit.watch import Watch, doubts, energy
from edgekit.machine.facts import environment

__all__ = [
    "DeviceMemory",
    "PeakMemory",
    "Watch",
    "cores",
    "device_memory",
    "doubts",
    "energy",
    "environment",
    "peak_memory",
    "thread_counts",
]


def thread_counts() -> list[int]:
    """One, and all that this process may use."""
    return sorted({1, cores()})


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

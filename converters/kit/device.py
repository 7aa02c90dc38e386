"""What a device says of itself."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from typing import Any

from .nvml import open_nvml
from .sensors import text


def device_facts(root: str = "/") -> dict[str, Any]:
    """What this machine says of itself; None where it does not say.

    Keys: ``name``, ``machine``, ``python``, ``l4t``, ``jetpack``, ``power_mode``, ``power_modes``
    (all that nvpmodel knows), ``driver`` (NVIDIA's) and ``gpu`` (name, compute_capability).
    """
    release = text(os.path.join(root, "etc/nv_tegra_release"))
    l4t = re.search(r"# R(\d+) .*?REVISION: ([\d.]+)", release or "")
    package = ("dpkg-query", "--show", "--showformat=${Version}", "nvidia-jetpack")
    return {
        "name": text(os.path.join(root, "proc/device-tree/model")) or platform.node(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "l4t": "{}.{}".format(*l4t.groups()) if l4t else None,
        "jetpack": _output(*package) if l4t else None,
        "power_mode": power_mode(root),
        "power_modes": list(power_modes(root).values()) or None,
        **gpu_facts(root),
    }


def gpu_facts(root: str = "/") -> dict[str, Any]:
    """NVIDIA's driver and the GPU that CUDA uses first; None where there is none."""
    nvml = open_nvml()
    if nvml is None:
        # A Jetson's GPU driver has no NVML before JetPack 6; its release is named with L4T's.
        return {"driver": _loaded_driver(root), "gpu": None}
    try:
        gpu = {"name": nvml.name, "compute_capability": nvml.capability}
        return {"driver": nvml.driver, "gpu": gpu if nvml.name else None}
    finally:
        nvml.close()


def _loaded_driver(root: str) -> str | None:
    version = re.search(r"Module.*?\s([\d.]+)\s", text(f"{root}/proc/driver/nvidia/version") or "")
    return version.group(1) if version else None


def power_mode(root: str = "/") -> str | None:
    """The power mode of a Jetson: what nvpmodel wrote when it set it, else what it answers."""
    set_ = re.search(r"pmode:(\d+)", text(os.path.join(root, "var/lib/nvpmodel/status")) or "")
    named = power_modes(root).get(int(set_.group(1))) if set_ else None
    if named is not None or root != "/":
        return named
    told = re.search(r"NV Power Mode: *(\S+)", _output("nvpmodel", "-q") or "")
    return told.group(1) if told else None


def power_modes(root: str = "/") -> dict[int, str]:
    """The power modes that nvpmodel knows on this Jetson, by number."""
    lines = text(os.path.join(root, "etc/nvpmodel.conf")) or ""
    found = re.findall(r"^\s*< *POWER_MODEL +ID=(\d+) +NAME=(\S+)", lines, re.MULTILINE)
    return {int(number): name for number, name in found}


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None

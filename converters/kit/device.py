"""What a device says of itself."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path


def device_facts() -> dict[str, str | None]:
    """What this machine says of itself; None where it does not say."""
    release = _text("/etc/nv_tegra_release")
    l4t = re.search(r"# R(\d+) .*?REVISION: ([\d.]+)", release or "")
    power = re.search(r"NV Power Mode: *(\S+)", _output("nvpmodel", "-q") or "")
    return {
        "name": _text("/proc/device-tree/model") or platform.node(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "l4t": "{}.{}".format(*l4t.groups()) if l4t else None,
        "jetpack": _output("dpkg-query", "--show", "--showformat=${Version}", "nvidia-jetpack"),
        "power_mode": power.group(1) if power else None,
    }


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip("\0\n ") or None
    except OSError:
        return None


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None

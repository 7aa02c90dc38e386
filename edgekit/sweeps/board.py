"""Board: where this machine is the device that a kit is for, the kit is run here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgekit import single
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError
from edgekit.progress import stage

#: Seconds that a kit may think about whether it fits.
CHECK = 60


def measured(bundle: Bundle, target: str) -> Bundle:
    """The bundle after its kit was run, where there is one and it says that it fits this machine.

    Raises:
        EdgekitError: it fits, and then ended without a result.
    """
    rows = [r for r in bundle.manifest.rows if (r.target, r.format) == (target, "on_device")]
    if not rows or rows[0].path is None or any("latency_ms" in e for e in rows[0].latency):
        return bundle
    kit = bundle.path / rows[0].path
    python = next((each for each in pythons() if fits(each, kit)), None)
    return bundle if python is None else _run(bundle, kit, python)


def pythons() -> list[str]:
    """The interpreters that may have the device's TensorRT: this one, and the system's own."""
    found = shutil.which("python3", path=os.defpath)
    return [sys.executable, *([found] if found and found != sys.executable else [])]


def fits(python: str, kit: Path) -> bool:
    """Whether the kit says that it can be built and run here."""
    command = [python, "run.pyz", "--check", "--json"]
    try:
        done = subprocess.run(command, cwd=kit, capture_output=True, check=False, timeout=CHECK)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _run(bundle: Bundle, kit: Path, python: str) -> Bundle:
    """Run a copy, since the bundle's own kit stays as it was built, and read its result back."""
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        copy = Path(shutil.copytree(kit, Path(folder) / kit.name))
        with stage(f"Running the kit in {kit} with {python}"):
            command = [python, "run.pyz", *_times(bundle.manifest.recipe)]
            done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
        if not (copy / "result.json").exists():
            last = (done.stderr or done.stdout).strip()[-2000:]
            raise EdgekitError(f"The kit ended with {done.returncode} and no result.", last)
        return single.read_back(bundle.path, copy / "result.json")


def _times(recipe: dict[str, Any]) -> list[str]:
    """The kit's flags for how long to measure."""
    names = ("iterations", "seconds")
    return [text for name in names for text in (f"--{name}", str(recipe[name]))]

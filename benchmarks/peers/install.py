"""A virtual environment for each peer, with what its NAME.txt pins and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.progress import say

HERE = Path(__file__).parent
#: Git sees none of it: the folder holds a .gitignore of its own.
ROOT = Path(".peers")


def python_of(peer: str) -> str:
    """The interpreter of a peer, installed when it is first asked for; edgekit's is this one.

    Raises:
        EdgekitError: pip failed; its last lines are quoted.
    """
    pins = HERE / f"{peer}.txt"
    if not pins.exists():
        return sys.executable
    folder = room() / "venvs" / peer
    marker, wanted = folder / pins.name, pins.read_text(encoding="utf-8")
    python = str(folder / "bin" / "python")
    if not marker.exists() or marker.read_text(encoding="utf-8") != wanted:
        say(f"Installing {peer}")
        _run([sys.executable, "-m", "venv", "--clear", str(folder)], peer)
        pip = [python, "-m", "pip", "install", "--quiet"]
        for torch in (line for line in wanted.splitlines() if line.startswith("torch==")):
            # Elsewhere than on a CPU-only machine torch needs packages that no pin names.
            _run([*pip, torch], peer)
        _run([*pip, "--no-deps", "--requirement", str(pins)], peer)
        marker.write_text(wanted, encoding="utf-8")
    return python


def room() -> Path:
    """The folder for environments, sources and artifacts."""
    ROOT.mkdir(exist_ok=True)
    (ROOT / ".gitignore").write_text("*\n", encoding="utf-8")
    return ROOT


def versions(peer: str) -> dict[str, str]:
    """What a peer's file pins."""
    path = HERE / f"{peer}.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return dict(pairs)


def _run(command: list[str], peer: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgekitError(f"{peer} cannot be installed.", done.stderr.strip()[-500:])

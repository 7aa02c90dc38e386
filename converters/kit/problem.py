"""How the kit says no, and how it says anything else."""

from __future__ import annotations

import sys


class Problem(Exception):
    """Something that stops the work: what happened, why, and how to fix it."""

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__("\n".join(line for line in (what, why, fix) if line))


class NoDevice(Problem):
    """There is no CUDA device here."""


def say(text: str) -> None:
    """One line to the person who runs this, at once: it may be read over SSH, or from a file."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()

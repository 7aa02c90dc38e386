"""Turns: on one machine many may build at once, and one measures while none builds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.errors import EdgekitError


@contextmanager
def building(lock: Path | None) -> Iterator[None]:
    """Others may build meanwhile; none measures. Without a lock there are no others."""
    with _held(lock, alone=False):
        yield


@contextmanager
def measuring(lock: Path | None) -> Iterator[None]:
    """No other builds or measures meanwhile."""
    with _held(lock, alone=True):
        yield


@contextmanager
def _held(lock: Path | None, alone: bool) -> Iterator[None]:
    """The system's own lock of a file, which a process that is killed lets go."""
    if lock is None:
        yield
        return
    try:
        import fcntl
    except ImportError as error:
        raise EdgekitError(
            "Cells cannot take turns on this system.",
            "It has no shared file locks (fcntl).",
            "Sweep with --jobs 1.",
        ) from error
    with lock.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield

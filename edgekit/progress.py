"""Progress of long work, on stderr. Silent until the command line turns it on.

>>> list(track([1, 2], "Counting"))
[1, 2]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

_enabled = False


def enable() -> None:
    """Show progress from now on."""
    global _enabled
    _enabled = True


def say(text: str) -> None:
    """One line about what was done or decided."""
    if _enabled:
        _console().print(text, highlight=False)


def track(items: Iterable[T], description: str, total: float | None = None) -> Iterator[T]:
    """Iterate with a bar that shows the time left; ``total`` where the items cannot be counted."""
    if not _enabled:
        yield from items
        return
    from rich.progress import track as rich_track

    yield from rich_track(items, description, total, console=_console(), transient=True)


@contextmanager
def stage(description: str) -> Iterator[None]:
    """A spinner around a step of unknown length; a line where stderr is no terminal."""
    console = _console()
    if _enabled and console.is_terminal:
        with console.status(description):
            yield
        return
    say(description)
    yield


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)

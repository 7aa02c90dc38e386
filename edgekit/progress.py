"""Progress of long work, on stderr. Silent until the command line turns it on.

>>> list(track([1, 2], "Counting"))
[1, 2]
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

_enabled = False


def enable() -> None:
    """Show progress from now on; of the processes that torchrun started, the first one does."""
    global _enabled
    _enabled = os.environ.get("RANK", "0") == "0"


def visible() -> bool:
    """Whether another program may draw its own progress on stderr."""
    return _enabled and sys.stderr.isatty()


def say(text: str) -> None:
    """One line about what was done or decided."""
    if _enabled:
        _console().print(text, highlight=False, markup=False)


def track(items: Iterable[T], description: str, total: float | None = None) -> Iterator[T]:
    """Iterate with a bar that shows the time left; ``total`` where the items cannot be counted."""
    if not _enabled:
        yield from items
        return
    from rich.progress import track as rich_track

    yield from rich_track(items, description, total, console=_console(), transient=True)


@contextmanager
def bar(description: str, total: int, done: int = 0) -> Iterator[Callable[[str], None]]:
    """A bar with the time left, for steps that tell how it goes; lines where there is no terminal.

    Args:
        total, done: steps in all, and those that were done before.

    Returns:
        What is called after each step with what is to be shown beside the bar, such as a loss.
    """
    console = _console()
    if not (_enabled and console.is_terminal):
        with _lines(description, total, done) as advance:
            yield advance
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    text = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    columns = (text[0], BarColumn(), MofNCompleteColumn(), Left(), text[1])
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=total, completed=done, note="")
        yield lambda note: progress.update(task, advance=1, note=note)


@contextmanager
def _lines(description: str, total: int, done: int) -> Iterator[Callable[[str], None]]:
    """As ``bar``, with a line at every tenth of the work."""
    start, first = time.monotonic(), done

    def advance(note: str) -> None:
        nonlocal done
        done += 1
        if done * 10 // total > (done - 1) * 10 // total:
            left = (time.monotonic() - start) / (done - first) * (total - done)
            say(f"{description}: {done} of {total}, {note}, {left:.0f} s left")

    yield advance


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

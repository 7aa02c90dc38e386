"""Interrupt: a Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever it happens to be, and swallows it in a finalizer or a
weak reference's callback, of which torch has many. So it is also noted, for long work to look at
between its steps.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

_asked = False


def listen() -> None:
    """Note Ctrl-C from now on. Only a main thread may."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _note)


def check() -> None:
    """Raise KeyboardInterrupt if it was asked for."""
    if _asked:
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = True
    raise KeyboardInterrupt

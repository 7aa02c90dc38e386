"""A thread that looks at something now and then, and costs what it looks at next to nothing."""

from __future__ import annotations

import threading
from typing import Callable

#: Seconds between two looks of a `Watch`: what a throttled clock or a power rail needs to show.
INTERVAL = 0.2


class Sampler:
    """Call ``sample`` at once, every ``interval`` seconds, and once more at the end."""

    def __init__(self, sample: Callable[[], None], interval: float = INTERVAL) -> None:
        self._sample, self._interval = sample, interval
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgekit-watch", daemon=True)

    def start(self) -> None:
        """Take the first sample, then go on in the background."""
        self._sample()
        self._thread.start()

    def stop(self) -> None:
        """Take the last sample; no other follows it."""
        self._end.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._end.wait(self._interval):
            self._sample()

"""A clock that tests turn, and sessions that take time on it."""

from __future__ import annotations

import pytest


class Clock:
    """A call takes the next of its durations, in seconds."""

    def __init__(self, *durations):
        self.now, self.calls, self.durations = 0.0, 0, durations

    def __call__(self):
        return self.now

    def work(self):
        self.now += self.durations[self.calls % len(self.durations)]
        self.calls += 1


@pytest.fixture
def clock(monkeypatch):
    """``clock(0.1, 0.2)`` is ``time.perf_counter`` from then on."""

    def make(*durations):
        made = Clock(*durations)
        monkeypatch.setattr("time.perf_counter", made)
        return made

    return make


class Session:
    """A runtime's session whose call takes so many seconds of a clock that we turn."""

    states = ()
    batch = None

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.seen = clock, seconds, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def infer(self, inputs):
        self.seen.append(inputs)
        self.clock.now += next(self.seconds)


@pytest.fixture
def session():
    """The class."""
    return Session

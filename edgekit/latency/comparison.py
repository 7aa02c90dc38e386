"""Comparison: which of two artifacts is faster, on a machine that does other work too.

Three things make one of two equal artifacts look slower, and each has its remedy:

- other work on the machine: the two take turns, in blocks of a few calls, so it hits both; and
  since it makes calls slower, never faster, each side counts with its lower decile, the time of
  calls that were not disturbed. (On two cores with five other processes the interval of medians
  is five times as wide.)
- the order of turns, and slow changes: the turns are ABBA or BAAB, by chance;
- where a session's weights came to lie in memory. The same file loaded twice differs by half a
  percent and more for as long as both stay loaded, and no number of calls averages it out
  (``benchmarks/bench_overhead.py`` shows it). So both are loaded anew several times: each time
  gives one ratio, and the interval is over these, which are independent.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgekit import interrupt
from edgekit.latency.interval import confidence, median_interval
from edgekit.latency.settings import Settings, phases
from edgekit.pipeline import load
from edgekit.targets.runtimes import Arrays, Runtime

#: Times that both are loaded: the fewest whose interval holds the ratio in 95 of 100 cases.
LOADS = 6
#: Loads that a comparison without time must do with.
LEAST_LOADS = 3
#: Timed calls in a block. One more comes before them, as the other side's threads may still spin.
CALLS = 3
#: The share of calls that other work is taken to leave alone.
UNDISTURBED = 0.1


@dataclass(frozen=True)
class Ratio:
    """How long one artifact takes against another, from rounds in which they took turns.

    Attributes:
        ratio: median over loads; under 1 the first is faster.
        low, high: its interval, by order statistics.
        confidence: how often such an interval holds the ratio: 0.969 of six loads.
        first_ms, second_ms: milliseconds of an undisturbed call: its lower decile, the median
            over loads.
        rounds: turns of both, over all loads.
        loads: times that both were loaded anew.
    """

    ratio: float
    low: float
    high: float
    first_ms: float
    second_ms: float
    rounds: int
    threads: int | None
    loads: int = 1
    confidence: float = 0.0

    @property
    def verdict(self) -> str:
        """``faster``, ``slower`` or ``no difference seen``, of the first."""
        if self.high < 1:
            return "faster"
        return "slower" if self.low > 1 else "no difference seen"

    @property
    def on_threads(self) -> str:
        """`` on 2 threads``; nothing where the runtime chose them."""
        if self.threads is None:
            return ""
        return f" on {self.threads} thread{'s' if self.threads > 1 else ''}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Visit(NamedTuple):
    """Seconds of undisturbed calls of either side, in one load, and the rounds of turns."""

    first: float
    second: float
    rounds: int


def paired(
    first: Path,
    second: Path,
    runtime: str,
    settings: Settings,
    threads: int | None,
    loads: int = LOADS,
    least: int = LEAST_LOADS,
) -> Ratio:
    """Time two artifacts in turns, so that what else the machine does hits both alike.

    Of a stream it is the step. It ends after ``settings.iterations`` calls of each or
    ``settings.seconds``, loading included, but not before ``least`` loads with a round each.
    """
    opened = [lambda p=path: load(runtime, p, threads) for path in (first, second)]
    return in_turns(opened[0], opened[1], settings, threads, loads, least)


def in_turns(
    first: Callable[[], Runtime],
    second: Callable[[], Runtime],
    settings: Settings,
    threads: int | None,
    loads: int = LOADS,
    least: int = LEAST_LOADS,
) -> Ratio:
    """As ``paired``, of what two functions open."""
    chance = random.Random(0)
    rounds = max(1, round(settings.iterations / (loads * 2 * CALLS)))
    end = time.perf_counter() + settings.seconds
    visits: list[Visit] = []
    while len(visits) < loads and (len(visits) < least or time.perf_counter() < end):
        interrupt.check()
        now = time.perf_counter()
        until = now + max(0.0, end - now) / (loads - len(visits))
        # Memory is given out in order: neither side is always the one that is loaded first.
        swapped = len(visits) % 2 == 1
        with (second if swapped else first)() as one, (first if swapped else second)() as two:
            sides = (two, one) if swapped else (one, two)
            visits.append(visit(sides, settings, rounds, until, chance))
    return _ratio(visits, threads)


def visit(
    sides: tuple[Runtime, Runtime],
    settings: Settings,
    rounds: int,
    until: float,
    chance: random.Random,
) -> Visit:
    """Rounds of turns between two open sessions, at least one and until a time is reached."""
    inputs = list(phases(sides[0], settings.inputs).values())[-1]
    for session in sides:
        for _ in range(min(settings.warmup, CALLS)):
            session.infer(inputs)
    taken: tuple[list[float], list[float]] = ([], [])
    done = 0
    while done < rounds and (not done or time.perf_counter() < until):
        for side in (0, 1, 1, 0) if chance.random() < 0.5 else (1, 0, 0, 1):
            taken[side].extend(_block(sides[side].infer, inputs))
        done += 1
    first, second = (float(np.quantile(times, UNDISTURBED)) for times in taken)
    return Visit(first, second, done)


def _block(infer: Callable[[Arrays], object], inputs: Arrays) -> list[float]:
    """Seconds of a few calls, after one that is not timed."""
    infer(inputs)
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        infer(inputs)
        times.append(time.perf_counter() - start)
    return times


def _ratio(visits: list[Visit], threads: int | None) -> Ratio:
    seconds = np.array([(visit.first, visit.second) for visit in visits])
    low, middle, high = median_interval(seconds[:, 0] / seconds[:, 1])
    first_ms, second_ms = (float(value) for value in np.median(seconds, axis=0) * 1e3)
    return Ratio(
        ratio=middle,
        low=low,
        high=high,
        first_ms=first_ms,
        second_ms=second_ms,
        rounds=sum(visit.rounds for visit in visits),
        threads=threads,
        loads=len(visits),
        confidence=round(confidence(len(visits)), 3),
    )

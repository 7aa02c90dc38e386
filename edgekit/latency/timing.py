"""Timing: the loop that times calls, and what is said of its times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from edgekit.converters.kit.measure import p90_at_most

#: Calls that are timed at least.
LEAST = 10


@dataclass(frozen=True)
class Latency:
    """Milliseconds a call, from host arrays to host arrays; throughput in samples a second.

    Attributes:
        times: the milliseconds of each call in order; not in ``as_dict``.
    """

    avg: float
    p50: float
    p90: float
    p95: float
    p99: float
    min: float
    max: float
    std: float
    throughput: float
    iterations: int
    warmup: int
    times: tuple[float, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def of(cls, seconds: Sequence[float], batch: int = 1, warmup: int = 0) -> Latency:
        """Statistics of calls that took so many seconds each."""
        ms = np.asarray(seconds) * 1e3
        p50, p90, p95, p99 = (float(v) for v in np.percentile(ms, (50, 90, 95, 99)))
        return cls(
            avg=float(ms.mean()),
            p50=p50,
            p90=p90,
            p95=p95,
            p99=p99,
            min=float(ms.min()),
            max=float(ms.max()),
            std=float(ms.std()),
            throughput=batch * 1e3 / float(ms.mean()),
            iterations=len(ms),
            warmup=warmup,
            times=tuple(ms.tolist()),
        )

    @property
    def spread(self) -> float:
        """Standard deviation by mean."""
        return self.std / self.avg

    @property
    def p90_at_most(self) -> float:
        """What p90 doesn't exceed with a confidence of 99%: MLPerf's early-stopping estimate."""
        return p90_at_most(self.times)

    def box(self) -> dict[str, Any]:
        """Quartiles, the ends of Tukey's whiskers, and how many calls lie beyond.

        ``outliers`` counts those more than a standard deviation off the mean, then those beyond
        the whiskers.
        """
        ms = np.sort(self.times)
        q1, q3 = (float(v) for v in np.percentile(ms, (25, 75)))
        reach = 1.5 * (q3 - q1)
        inside = ms[(ms >= q1 - reach) & (ms <= q3 + reach)]
        far = int((abs(ms - self.avg) > self.std).sum())
        return {
            "q1": q1,
            "q3": q3,
            "low": float(inside[0]),
            "high": float(inside[-1]),
            "outliers": [far, len(ms) - len(inside)],
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        fields = asdict(self)
        del fields["times"]
        return fields


def measure(
    call: Callable[[], object],
    batch: int = 1,
    warmup: int = 10,
    iterations: int = 100,
    seconds: float = 3.0,
) -> Latency:
    """Time ``call`` until ``iterations`` runs or ``seconds``, whichever comes first.

    At least ten runs are timed. ``batch`` is the number of samples in one call.
    """
    return Latency.of(timed(call, warmup, iterations, seconds), batch, warmup)


def timed(call: Callable[[], object], warmup: int, iterations: int, seconds: float) -> list[float]:
    """Seconds of each call; see ``measure``."""
    for _ in range(warmup):
        call()
    clock = time.perf_counter
    times: list[float] = []
    end = clock() + seconds
    while len(times) < iterations and (len(times) < LEAST or clock() < end):
        start = clock()
        call()
        times.append(clock() - start)
    return times

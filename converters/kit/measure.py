"""Compare an engine's outputs with the reference, and time it."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any, Iterable, NamedTuple, Sequence

import numpy as np

from .problem import Problem
from .watch import Watch, doubts, energy

if TYPE_CHECKING:
    from .engine import Arrays, Engine

LATENCY, SINGLE_STREAM = "latency", "single-stream"
#: The least number of timed calls, and of seconds, of each mode; MLPerf's own runs take 600 s.
LEAST = {LATENCY: (100, 2.0), SINGLE_STREAM: (1024, 60.0)}


def compare(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> dict[str, Any]:
    """max_abs, cosine and, for (samples, classes), top1: the share of equal arg-max.

    A comparison with NaN or infinity in it gives None, which passes no tolerance.
    """
    if actual.shape != expected.shape:
        raise Problem(f"The engine gives shape {actual.shape}, the reference has {expected.shape}.")
    a, b = actual.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / norms if norms else float(np.array_equal(a, b))
    result: dict[str, Any] = {"max_abs": float(np.abs(a - b).max()), "cosine": cosine}
    if expected.ndim == 2 and expected.shape[1] > 1:
        result["top1"] = float(np.mean(actual.argmax(-1) == expected.argmax(-1)))
    return {key: value if np.isfinite(value) else None for key, value in result.items()}


def within(drift: dict[str, dict[str, Any]], tolerance: dict[str, float]) -> bool:
    """Whether every output's cosine and top1 reach the tolerance."""
    return all(
        output[key] is not None and output[key] >= least
        for output in drift.values()
        for key, least in tolerance.items()
        if key in output
    )


def statistics(seconds: Sequence[float]) -> dict[str, float]:
    """Avg P50 P90 P95 P99 Min Max Std, in milliseconds."""
    ms = np.asarray(seconds, np.float64) * 1e3
    p50, p90, p95, p99 = np.percentile(ms, [50, 90, 95, 99])
    values = {"Avg": ms.mean(), "P50": p50, "P90": p90, "P95": p95, "P99": p99}
    values.update({"Min": ms.min(), "Max": ms.max(), "Std": ms.std()})
    return {name: round(float(value), 4) for name, value in values.items()}


class Settings(NamedTuple):
    """How to time: it ends when both the least number of calls and the least time are reached.

    Attributes:
        mode: "latency" repeats one call; "single-stream", as MLPerf's, answers one query after
            another, on samples drawn at random.
    """

    mode: str
    warmup: int
    iterations: int
    seconds: float

    @classmethod
    def of(cls, options: Any) -> Settings:
        """From the command line; each mode has its own least figures."""
        iterations, seconds = LEAST[options.mode]
        if options.mode == SINGLE_STREAM and (options.iterations or iterations) < iterations:
            raise Problem(
                f"{SINGLE_STREAM} takes {iterations:,} queries at least.",
                f"--iterations {options.iterations} is fewer.",
                "Leave it out, or use --mode latency.",
            )
        return cls(
            options.mode,
            options.warmup,
            options.iterations or iterations,
            seconds if options.seconds is None else options.seconds,
        )


def measure(engine: Engine, calls: Sequence[Arrays], settings: Settings) -> dict[str, Any]:
    """Time calls from host arrays to host arrays, with the machine watched meanwhile.

    Args:
        calls: the inputs of one call; of single-stream those of several, one sample each.

    Returns:
        batch, mode, warmup, iterations, seconds, latency_ms, throughput (samples a second),
        spread (standard deviation by mean), device_ms (medians of the GPU's times), energy of one
        sample, watch and doubts; of single-stream also samples and p90_at_most_ms, which p90
        does not exceed with a confidence of 99%.
    """
    for number in range(settings.warmup):
        engine.infer(calls[number % len(calls)])
    times: list[float] = []
    parts: list[dict[str, float]] = []
    chance, clock = random.Random(0), time.perf_counter
    with Watch(device="gpu") as watch:
        end = clock() + settings.seconds
        while len(times) < settings.iterations or clock() < end:
            inputs = calls[chance.randrange(len(calls))] if len(calls) > 1 else calls[0]
            before = clock()
            engine.infer(inputs)
            times.append(clock() - before)
            parts.append(engine.device_times())
    return _figures(len(calls[0][engine.inputs[0]]), len(calls), settings, times, parts, watch)


def _figures(
    batch: int,
    samples: int,
    settings: Settings,
    times: Sequence[float],
    parts: Sequence[dict[str, float]],
    watch: Watch,
) -> dict[str, Any]:
    watched, mean = watch.report(), float(np.mean(times))
    spread = float(np.std(times)) / mean
    found = {
        "batch": batch,
        "mode": settings.mode,
        "warmup": settings.warmup,
        "iterations": len(times),
        "seconds": round(sum(times), 3),
        "latency_ms": statistics(times),
        "throughput": round(batch / mean, 2),
        "spread": round(spread, 4),
        "device_ms": {name: _median(part[name] for part in parts) for name in parts[0]} or None,
        "energy": energy(watched, len(times) * batch),
        "watch": watched,
        "doubts": doubts(watched, spread),
    }
    if settings.mode == SINGLE_STREAM:
        found.update(samples=samples, p90_at_most_ms=round(p90_at_most(times) * 1e3, 4))
    return found


def _median(values: Iterable[float]) -> float:
    return round(float(np.median(list(values))), 4)


def p90_at_most(times: Sequence[float]) -> float:
    """What p90 does not exceed with a confidence of 99%: MLPerf's early-stopping estimate.

    The order statistic above which p90 lies with a chance of 1% (binomial, by its normal
    approximation), or the largest where there are too few.
    """
    count = len(times)
    rank = int(np.ceil(0.9 * count + 2.326 * np.sqrt(0.09 * count) + 0.5))
    return float(np.sort(np.asarray(times))[min(rank, count) - 1])

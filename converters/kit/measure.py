"""Compare an engine's outputs with the reference, and time it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

from .problem import Problem

if TYPE_CHECKING:
    from .engine import Arrays, Engine


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


def measure(engine: Engine, inputs: Arrays, warmup: int, iterations: int) -> dict[str, Any]:
    """Host-to-host latency of one call, and throughput in samples a second."""
    for _ in range(warmup):
        engine.infer(inputs)
    times, started = [], time.perf_counter()
    for _ in range(iterations):
        before = time.perf_counter()
        engine.infer(inputs)
        times.append(time.perf_counter() - before)
    elapsed = time.perf_counter() - started
    batch = len(inputs[engine.inputs[0]])
    return {
        "batch": batch,
        "warmup": warmup,
        "iterations": iterations,
        "latency_ms": statistics(times),
        "throughput": round(batch * iterations / elapsed, 2),
    }

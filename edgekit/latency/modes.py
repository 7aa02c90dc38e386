"""Modes: how calls are made and timed. One after another, MLPerf's single stream, or several
in flight.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from edgekit import interrupt
from edgekit.errors import EdgekitError
from edgekit.latency.cell import Cell, Rows, Timer, failed, figure, figures, memory
from edgekit.latency.inputs import Point, Taken
from edgekit.latency.interval import median_interval
from edgekit.latency.plan import QUERIES, SINGLE_STREAM_SECONDS, Limits
from edgekit.latency.settings import opening
from edgekit.latency.timing import LEAST, Latency, measure
from edgekit.progress import say
from edgekit.targets.runtimes import Arrays, Runtime

#: A larger batch pays if it gives so much more throughput.
PAYS = 1.03
#: The largest batch that is tried unasked.
MOST = 256
#: Parts of the time whose throughputs tell how sure the whole's is.
SLICES = 12


def one_by_one(limits: Limits) -> Timer:
    """The same call again and again: ``measure``."""

    def timer(session: Runtime, calls: tuple[Arrays, ...]) -> tuple[Latency, dict[str, Any]]:
        inputs, batch = calls[0], _batch(calls)
        iterations, seconds = limits.iterations or 100, limits.seconds or 3.0
        return measure(lambda: session.infer(inputs), batch, limits.warmup, iterations, seconds), {}

    return timer


def single_stream(limits: Limits) -> Timer:
    """As MLPerf's single stream: each query when the last is answered, on samples drawn at random.

    It ends when both the least number of queries and the least time are reached; p90 is the
    figure. (MLPerf's own load generator also judges accuracy; ``edgekit eval`` does that.)
    """
    least, seconds = limits.iterations or QUERIES, limits.seconds or SINGLE_STREAM_SECONDS

    def timer(session: Runtime, calls: tuple[Arrays, ...]) -> tuple[Latency, dict[str, Any]]:
        say(f"Single stream: at least {least:,} queries and {seconds:g} s")
        for number in range(limits.warmup):
            session.infer(calls[number % len(calls)])
        chance, clock = random.Random(0), time.perf_counter
        times: list[float] = []
        end = clock() + seconds
        while len(times) < least or clock() < end:
            interrupt.check()
            inputs = calls[chance.randrange(len(calls))]
            start = clock()
            session.infer(inputs)
            times.append(clock() - start)
        latency = Latency.of(times, _batch(calls), limits.warmup)
        extra = {
            "figure": figure("p90_ms", latency, 0.9),
            "p90_at_most_ms": latency.p90_at_most,
            "samples": len(calls),
        }
        return latency, extra

    return timer


def throughput_rows(
    cell: Cell, taken: Taken, base: Arrays, points: list[Point], streams: int, limits: Limits
) -> Rows:
    """Samples a second with so many calls in flight, at each size; or at those that pay.

    Args:
        points: the sizes; none tries batches of 1, 2, 4... until a larger one doesn't pay.
    """
    if points:
        return [_in_flight(cell, point, streams, limits) for point in points]
    rows: Rows = []
    best, batch = 0.0, taken.batch or 1
    while batch <= MOST:
        try:
            (point,) = taken.sized(base, (batch,), ())
        except EdgekitError:  # beyond what it was built for
            break
        row = _in_flight(cell, point, streams, limits)
        rows.append(row)
        if row["status"] != "measured" or row["throughput"] < PAYS * best:
            break
        best, batch = row["throughput"], 2 * batch
        if taken.batch is not None:
            break
    return rows


def _in_flight(cell: Cell, point: Point, streams: int, limits: Limits) -> dict[str, Any]:
    """One row: a session for each stream, all busy for the same time."""
    interrupt.check()
    cell = Cell(cell.candidate, cell.threads, point)
    identity = cell.identity("", streams)
    say(f"Throughput of {identity['artifact']}: batch {point.batch}, {streams} in flight")
    cell.candidate.prepare()
    try:
        with memory() as used, ExitStack() as stack:
            start = time.perf_counter()
            sessions = [
                stack.enter_context(cell.candidate.opens(cell.threads)) for _ in range(streams)
            ]
            cold: dict[str, float | None] = {"load_ms": (time.perf_counter() - start) * 1e3}
            inputs = opening(sessions[0], point.calls[0])
            identity["phase"] = "prefill" if sessions[0].states else ""
            start = time.perf_counter()
            sessions[0].infer(inputs)
            cold["first_ms"] = (time.perf_counter() - start) * 1e3
            with cell.watch() as watch:
                ends, times = run_streams([s.infer for s in sessions], inputs, limits)
    except EdgekitError as error:
        return failed(identity, " ".join(f"failed: {error.what} {error.why}".split()))
    latency = Latency.of(times, point.batch, limits.warmup)
    rate = _rate(ends, point.batch)
    row = figures(latency, watch.report(), point.batch, _warmup(limits) * streams)
    return {
        **identity,
        "status": "measured",
        **row,
        "throughput": rate["value"],
        "figure": rate,
        "device_ms": None,
        "cold": cold,
        **used,
    }


def run_streams(
    infers: list[Callable[[Arrays], object]], inputs: Arrays, limits: Limits
) -> tuple[list[float], list[float]]:
    """Keep all streams busy; when each call ended, from the common start, and what it took.

    Raises:
        EdgekitError: a call failed.
    """
    ready = threading.Barrier(len(infers) + 1)
    ended: list[tuple[float, float]] = []
    errors: list[EdgekitError] = []
    seconds, most, stop = limits.seconds or 3.0, limits.iterations, threading.Event()

    def work(infer: Callable[[Arrays], object]) -> None:
        try:
            for _ in range(_warmup(limits)):
                infer(inputs)
            ready.wait()
            begun = time.perf_counter()
            end, done = begun + seconds, 0
            while not stop.is_set() and (done < LEAST or time.perf_counter() < end):
                if most is not None and done >= most:
                    break
                start = time.perf_counter()
                infer(inputs)
                now = time.perf_counter()
                ended.append((now - begun, now - start))
                done += 1
        except EdgekitError as error:
            errors.append(error)
            ready.abort()
        except threading.BrokenBarrierError:  # another stream failed, and says why
            return

    workers = [threading.Thread(target=work, args=(infer,), daemon=True) for infer in infers]
    for worker in workers:
        worker.start()
    try:
        ready.wait()
        while any(worker.is_alive() for worker in workers):
            interrupt.check()
            for worker in workers:
                worker.join(0.1)
    except threading.BrokenBarrierError:
        pass
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    if errors:
        raise errors[0]
    ended.sort()
    return [end for end, _ in ended], [taken for _, taken in ended]


def _warmup(limits: Limits) -> int:
    """Untimed calls of each stream: one at least, since it was only loaded."""
    return max(1, limits.warmup)


def _rate(ends: list[float], batch: int) -> dict[str, Any]:
    """Samples a second while all streams are busy, with the interval of its parts' median."""
    ordered = np.array(ends)
    # Calls that ended in a part of the time, over that from the last end before it to its last.
    parts = [part for part in np.array_split(np.arange(len(ordered)), SLICES) if len(part)]
    before = [0.0, *(float(ordered[part[-1]]) for part in parts[:-1])]
    rates = [
        batch * len(part) / max(float(ordered[part[-1]]) - start, 1e-9)
        for part, start in zip(parts, before, strict=True)
    ]
    low, _, high = median_interval(np.array(rates))
    value = batch * len(ordered) / float(ordered[-1])
    return {"name": "samples_s", "value": value, "low": min(low, value), "high": max(high, value)}


def _batch(calls: tuple[Arrays, ...]) -> int:
    return len(next(iter(calls[0].values())))

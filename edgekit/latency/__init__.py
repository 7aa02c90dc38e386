"""Latency: how long one call takes, how sure that is, and on what machine it was measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import EdgekitError
from edgekit.machine import PeakMemory, cores, peak_memory, thread_counts
from edgekit.pipeline import load
from edgekit.progress import say

if TYPE_CHECKING:
    from edgekit.model import Model
    from edgekit.targets.runtimes import Arrays, Runtime

SCHEMA_VERSION = 1
#: Rounds of a comparison, and calls of each side in a round, at most; the first call of a block
#: is not timed, since the other side's threads may still be spinning.
ROUNDS, CALLS = 15, 4


@dataclass(frozen=True)
class Latency:
    """Milliseconds a call, from host arrays to host arrays; throughput in samples a second."""

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

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


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
    for _ in range(warmup):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < iterations and (len(times) < 10 or time.perf_counter() < end):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    ms = np.array(times) * 1e3
    p50, p90, p95, p99 = (float(v) for v in np.percentile(ms, (50, 90, 95, 99)))
    return Latency(
        avg=float(ms.mean()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        min=float(ms.min()),
        max=float(ms.max()),
        std=float(ms.std()),
        throughput=batch * 1e3 / float(ms.mean()),
        iterations=len(times),
        warmup=warmup,
    )


@dataclass(frozen=True)
class Settings:
    """How to measure: the inputs of one call, and when to stop (see ``measure``)."""

    inputs: Arrays
    warmup: int = 10
    iterations: int = 100
    seconds: float = 3.0

    def time(self, runtime: str, threads: int, infer: Callable[[Arrays], object]) -> Latency:
        """Latency of ``infer`` on the inputs."""
        batch = len(next(iter(self.inputs.values())))
        say(f"Timing {runtime} on {threads} threads")
        return measure(
            lambda: infer(self.inputs), batch, self.warmup, self.iterations, self.seconds
        )


def time_artifact(artifact: Path, runtime: str, settings: Settings) -> list[dict[str, Any]]:
    """Latency and peak memory of an artifact, one entry a number of threads."""
    entries = []
    for threads in thread_counts():
        with peak_memory() as memory, load(runtime, artifact, threads) as session:
            results = {
                name: replace(settings, inputs=call).time(runtime, threads, session.infer)
                for name, call in phases(session, settings.inputs).items()
            }
        for name, result in results.items():
            phase = {"phase": name} if name else {}
            parts = {"parts_ms": session.parts()} if session.parts() else {}
            entries.append({**_entry(runtime, threads, result, memory), **phase, **parts})
    return entries


def phases(session: Runtime, inputs: Arrays) -> dict[str, Arrays]:
    """The calls that are timed, by name: one of whole inputs, or the two of a stream.

    A stream's ``prefill`` takes the inputs from the start; its ``step`` one more token after them.
    """
    if not session.states:
        return {"": inputs}
    batch = len(next(iter(inputs.values())))
    prefill = {**inputs, **{spec.name: spec.start(batch) for spec in session.states}}
    found = session.infer(prefill)
    token = {name: value[:, -1:] for name, value in inputs.items()}
    step = {**token, **{spec.name: found[spec.output] for spec in session.states}}
    return {"prefill": prefill, "step": step}


@dataclass(frozen=True)
class Ratio:
    """How long one artifact takes against another, from rounds in which they took turns.

    Attributes:
        ratio: median over rounds; under 1 the first is faster.
        low, high: its 95% interval, by order statistics; of few rounds, the least and largest.
        first_ms, second_ms: median milliseconds a call.
    """

    ratio: float
    low: float
    high: float
    first_ms: float
    second_ms: float
    rounds: int
    threads: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def paired(first: Path, second: Path, runtime: str, settings: Settings, threads: int) -> Ratio:
    """Time two artifacts in turns, so that what else the machine does hits both alike.

    Of a stream it is the step. It ends after ``settings.iterations`` calls of each or
    ``settings.seconds``, but not before three rounds.
    """
    rounds = max(3, min(ROUNDS, settings.iterations // CALLS))
    blocks: list[tuple[float, float]] = []
    with load(runtime, first, threads) as one, load(runtime, second, threads) as two:
        inputs = list(phases(one, settings.inputs).values())[-1]
        for session in (one, two):
            for _ in range(min(settings.warmup, CALLS)):
                session.infer(inputs)
        end = time.perf_counter() + settings.seconds
        while len(blocks) < rounds and (len(blocks) < 3 or time.perf_counter() < end):
            order = (one, two) if len(blocks) % 2 == 0 else (two, one)
            taken = {id(session): _block(session.infer, inputs) for session in order}
            blocks.append((taken[id(one)], taken[id(two)]))
    ms = np.array(blocks) * 1e3
    low, middle, high = median_interval(ms[:, 0] / ms[:, 1])
    first_ms, second_ms = (float(value) for value in np.median(ms, axis=0))
    return Ratio(middle, low, high, first_ms, second_ms, len(blocks), threads)


def _block(infer: Callable[[Arrays], object], inputs: Arrays) -> float:
    """The median of a few calls, in seconds, after one that is not timed."""
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        infer(inputs)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def median_interval(values: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """The least, middle and largest value that the median may be, at 95%.

    >>> median_interval(np.arange(15.0))
    (3.0, 7.0, 11.0)
    """
    ordered = np.sort(values)
    count = len(ordered)
    # Beyond either end lie ``skipped`` values; the median lies there with a chance of ``tail``.
    skipped, tail = 0, 0.5**count
    while (wider := tail + math.comb(count, skipped + 1) * 0.5**count) <= 0.025:
        skipped, tail = skipped + 1, wider
    return float(ordered[skipped]), float(np.median(ordered)), float(ordered[-1 - skipped])


def time_source(model: Model, settings: Settings) -> list[dict[str, Any]]:
    """The source in PyTorch: eager on one and all cores, compiled on all.

    What cannot run is an entry that says why; it hides no other.
    """
    from edgekit.targets.runtimes.torch import Compiled, Eager, torch_threads

    tensors = [*model.module.parameters(), *model.module.buffers()]
    weights = sum(tensor.nbytes for tensor in tensors) / 2**20
    entries = []
    plans = [("torch eager", Eager, n) for n in thread_counts()]
    for name, make, threads in [*plans, ("torch.compile", Compiled, cores())]:
        try:
            with peak_memory() as memory, torch_threads(threads):
                result = settings.time(name, threads, make(model).infer)
        except EdgekitError as error:
            entries.append({"runtime": name, "threads": threads, "status": f"failed: {error.why}"})
        else:
            # The weights are in memory already; an artifact's figure includes its own.
            memory.added_mb = None if memory.added_mb is None else memory.added_mb + weights
            entries.append(_entry(name, threads, result, memory))
    return entries


def _entry(runtime: str, threads: int, result: Latency, memory: PeakMemory) -> dict[str, Any]:
    return {
        "runtime": runtime,
        "threads": threads,
        "status": "measured",
        "latency_ms": result.as_dict(),
        "peak_memory_mb": memory.added_mb,
    }

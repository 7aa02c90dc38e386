"""Cell: one artifact in one runtime at one size, measured: a row of the report for each phase."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from edgekit import interrupt, machine
from edgekit.errors import EdgekitError
from edgekit.latency.artifacts import weights_mb
from edgekit.latency.inputs import Point
from edgekit.latency.interval import quantile_interval
from edgekit.latency.plan import Plan
from edgekit.latency.settings import opening, phases
from edgekit.latency.subjects import Candidate, SourceSession
from edgekit.latency.timing import Latency
from edgekit.machine import Watch, doubts, energy
from edgekit.progress import say
from edgekit.targets.runtimes import Arrays, Runtime

#: Calls whose copies to and from the device are timed apart, after those that are timed whole.
DEVICE_CALLS = 20
#: What a row says first: which measurement it is.
IDENTITY = ("artifact", "target", "runtime", "threads", "batch", "shapes", "phase", "streams")

Rows = list[dict[str, Any]]
#: Times calls of a session on some inputs: the latency, and what it adds to the row.
Timer = Callable[[Runtime, tuple[Arrays, ...]], tuple[Latency, dict[str, Any]]]


@dataclass(frozen=True)
class Cell:
    """One measurement to make."""

    candidate: Candidate
    threads: int | None
    point: Point | None

    def identity(self, phase: str = "", streams: int = 1) -> dict[str, Any]:
        """Which measurement it is."""
        return {
            "artifact": self.candidate.artifact,
            "target": self.candidate.target,
            "runtime": self.candidate.runtime,
            "threads": self.threads,
            "batch": self.point.batch if self.point else None,
            "shapes": self.point.shapes if self.point else None,
            "phase": phase,
            "streams": streams,
        }

    def watch(self) -> Watch:
        """What sees the machine while it is timed, and the meter of what computes."""
        runtime = self.candidate.runtime
        if self.candidate.on_host:
            return Watch(device="cpu")
        return Watch(device=None if runtime == "coreml" else "gpu")


def failed(identity: dict[str, Any], status: str) -> dict[str, Any]:
    """The row of what was not measured."""
    return {**identity, "status": status}


def measure_cell(cell: Cell, plan: Plan, timer: Timer) -> Rows:
    """A row for each kind of call, or one that says why there is none."""
    if cell.point is None:
        raise ValueError("a cell without inputs")
    interrupt.check()
    _say(cell)
    try:
        return _measured(cell, cell.point, plan, timer)
    except EdgekitError as error:
        return [failed(cell.identity(), " ".join(f"failed: {error.what} {error.why}".split()))]


def _measured(cell: Cell, point: Point, plan: Plan, timer: Timer) -> Rows:
    candidate, rows = cell.candidate, []
    candidate.prepare()
    with memory() as used:
        start = time.perf_counter()
        with candidate.opens(cell.threads) as session:
            loaded = time.perf_counter()
            session.infer(opening(session, point.calls[0]))
            first = time.perf_counter()
            kinds = [phases(session, call) for call in point.calls]
            for name in kinds[0]:
                calls = tuple(kind[name] for kind in kinds)
                rows.append(_row(cell, name, session, calls, timer))
    load_ms: float | None = (loaded - start) * 1e3
    if isinstance(session, SourceSession):  # it was loaded before, weights and all
        load_ms = None
        if used["peak_memory_mb"] is not None:
            used["peak_memory_mb"] += weights_mb(session.model)
    cold = {"load_ms": load_ms, "first_ms": (first - loaded) * 1e3}
    whole = {"cold": cold, **used}
    profiles = _profiles(cell, point) if plan.profile else {}
    return [{**row, **whole, **profiles.get(row["phase"], {})} for row in rows]


def _row(
    cell: Cell, phase: str, session: Runtime, calls: tuple[Arrays, ...], timer: Timer
) -> dict[str, Any]:
    with cell.watch() as watch:
        latency, extra = timer(session, calls)
    row = {
        **cell.identity(phase),
        "status": "measured",
        **figures(latency, watch.report(), cell.point.batch if cell.point else 1),
        **extra,
        "device_ms": _device(session, calls[0]),
    }
    if session.parts():
        row["parts_ms"] = session.parts()
    return row


def figures(
    latency: Latency, watched: dict[str, Any], batch: int, untimed: int | None = None
) -> dict[str, Any]:
    """What a row says of a latency and of the machine meanwhile.

    Args:
        untimed: calls that were watched, but not timed; None is the latency's warm-up.
    """
    calls = latency.iterations + (latency.warmup if untimed is None else untimed)
    fields = latency.as_dict()
    counts = {name: fields.pop(name) for name in ("throughput", "iterations", "warmup")}
    return {
        "latency_ms": fields,
        "box_ms": latency.box(),
        **counts,
        "figure": figure("p50_ms", latency, 0.5),
        "spread": latency.spread,
        "energy": energy(watched, calls * batch),
        "watch": watched,
        "doubts": doubts(watched, latency.spread),
    }


def figure(name: str, latency: Latency, share: float) -> dict[str, Any]:
    """What two runs are compared by: a quantile of the times, with its 95% interval."""
    import numpy as np

    low, value, high = quantile_interval(np.array(latency.times), share)
    return {"name": name, "value": value, "low": low, "high": high}


@contextlib.contextmanager
def memory() -> Iterator[dict[str, float | None]]:
    """Peak mebibytes, None if unknown: what it adds on the host, what it holds of the GPU."""
    used: dict[str, float | None] = {"peak_memory_mb": None, "device_memory_mb": None}
    _give_back()
    with machine.peak_memory() as host, machine.device_memory() as device:
        yield used
    used["peak_memory_mb"], used["device_memory_mb"] = host.added_mb, device.peak_mb


def _give_back() -> None:
    """Return freed memory to the system: else the next block's peak would hide in it."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
        if trim is not None:
            trim(0)


def _device(session: Runtime, call: Arrays) -> dict[str, float] | None:
    """Medians of copies and computing over a few calls; None where nothing is copied."""
    if not session.device_times():
        return None
    times = []
    for _ in range(DEVICE_CALLS):
        session.infer(call)
        times.append(session.device_times())
    return {name: statistics.median(each[name] for each in times) for name in times[0]}


def _profiles(cell: Cell, point: Point) -> dict[str, dict[str, Any]]:
    """What each phase spends its time on, or why that is not known."""
    candidate = cell.candidate
    say(f"Profiling {candidate.artifact} in {candidate.runtime}")
    with candidate.opens(cell.threads) as session:
        calls = phases(session, point.calls[0])
    found = {name: candidate.profiled(call, cell.threads) for name, call in calls.items()}
    why = f"{candidate.runtime} gives no times of layers"
    return {
        name: {"profile": each.as_dict()} if each else {"profile": None, "profile_why": why}
        for name, each in found.items()
    }


def _say(cell: Cell) -> None:
    threads = "" if cell.threads is None else f", {cell.threads} threads"
    sizes = "" if cell.point is None else f", batch {cell.point.batch}"
    say(f"Timing {cell.candidate.artifact} in {cell.candidate.runtime}{threads}{sizes}")

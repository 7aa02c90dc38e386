"""Settings: the inputs of one call, the kinds of call that an artifact has, and when to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.find import find
from edgekit.latency.timing import Latency, measure
from edgekit.machine import thread_counts
from edgekit.progress import say

if TYPE_CHECKING:
    from edgekit.targets.runtimes import Arrays, Runtime


@dataclass(frozen=True)
class Settings:
    """How to measure: the inputs of one call, and when to stop (see ``measure``)."""

    inputs: Arrays
    warmup: int = 10
    iterations: int = 100
    seconds: float = 3.0

    def time(self, runtime: str, threads: int | None, infer: Callable[[Arrays], object]) -> Latency:
        """Latency of ``infer`` on the inputs."""
        say(f"Timing {runtime}" + ("" if threads is None else f" on {threads} threads"))
        return measure(
            lambda: infer(self.inputs),
            batch_of(self.inputs),
            self.warmup,
            self.iterations,
            self.seconds,
        )


def thread_choices(runtime: str) -> list[int | None]:
    """The numbers of threads to measure with; None where the runtime chooses its own."""
    return [*thread_counts()] if find("runtimes", runtime).THREADED else [None]


def batch_of(inputs: Arrays) -> int:
    """Samples in one call."""
    return len(next(iter(inputs.values())))


def opening(session: Runtime, inputs: Arrays) -> Arrays:
    """The first call: whole inputs, with a stream's states as they are at its start."""
    states = {spec.name: spec.start(batch_of(inputs)) for spec in session.states}
    return {**inputs, **states}


def phases(session: Runtime, inputs: Arrays) -> dict[str, Arrays]:
    """The calls that are timed, by name: one of whole inputs, or the two of a stream.

    A stream's ``prefill`` takes the inputs from the start; its ``step`` one more token after them.
    """
    if not session.states:
        return {"": inputs}
    prefill = opening(session, inputs)
    found = session.infer(prefill)
    token = {name: value[:, -1:] for name, value in inputs.items()}
    step = {**token, **{spec.name: found[spec.output] for spec in session.states}}
    return {"prefill": prefill, "step": step}

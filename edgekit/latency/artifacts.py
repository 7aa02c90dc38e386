"""Artifacts: what a build records of the latency of an artifact and of its source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import machine
from edgekit.errors import EdgekitError
from edgekit.latency.settings import Settings, phases, thread_choices
from edgekit.latency.timing import Latency
from edgekit.machine import PeakMemory, peak_memory, thread_counts
from edgekit.pipeline import load

if TYPE_CHECKING:
    from edgekit.model import Model


def time_artifact(artifact: Path, runtime: str, settings: Settings) -> list[dict[str, Any]]:
    """Latency and peak memory of an artifact, one entry a number of threads."""
    entries = []
    for threads in thread_choices(runtime):
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


def time_source(model: Model, settings: Settings) -> list[dict[str, Any]]:
    """The source in PyTorch: eager on one and all cores, compiled on all.

    What cannot run is an entry that says why; it hides no other.
    """
    from edgekit.targets.runtimes.torch import Compiled, Eager, torch_threads

    weights = weights_mb(model)
    entries = []
    plans = [("torch eager", Eager, n) for n in thread_counts()]
    for name, make, threads in [*plans, ("torch.compile", Compiled, machine.cores())]:
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


def weights_mb(model: Model) -> float:
    """Mebibytes of a model's parameters and buffers."""
    tensors = [*model.module.parameters(), *model.module.buffers()]
    return sum(tensor.nbytes for tensor in tensors) / 2**20


def _entry(
    runtime: str, threads: int | None, result: Latency, memory: PeakMemory
) -> dict[str, Any]:
    return {
        "runtime": runtime,
        "threads": threads,
        "status": "measured",
        "latency_ms": result.as_dict(),
        "peak_memory_mb": memory.added_mb,
    }

"""Layers by OpenVINO's own counters (``PERF_COUNT``): the mean over calls, loops as a whole.

Its compiled graph names, for each layer, the nodes of the file that it was fused of.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from edgekit import interrupt
from edgekit.profiling import CALLS, WARMUP, Layer, Layers
from edgekit.profiling.origins import Origins, role_of

if TYPE_CHECKING:
    from edgekit.targets.runtimes import Arrays

#: A counter is a mean in whole microseconds: over many calls that is exact enough.
_REPEATS = 4 * CALLS


def layers(artifact: Path, inputs: Arrays, compiled: Callable[[dict[str, Any]], Any]) -> Layers:
    """The layers of one call of an ONNX file.

    Args:
        compiled: the compiled model for options that are added to the runtime's own.
    """
    plain, counted = compiled({}), compiled({"PERF_COUNT": True})
    requests = [plain.create_infer_request(), counted.create_infer_request()]
    times: list[list[float]] = [[], []]
    for call in range(WARMUP + _REPEATS):
        if call == WARMUP:
            early = requests[1].profiling_info
        for taken, request in zip(times, requests, strict=True):
            interrupt.check()
            start = time.perf_counter()
            request.infer(inputs, share_inputs=True)
            taken.append(time.perf_counter() - start)
    origins, fused = Origins.read(artifact), _fused(counted)
    found = []
    for before, after in zip(early, requests[1].profiling_info, strict=True):
        if after.status == after.Status.EXECUTED:
            origin = origins.of_names(fused.get(after.node_name) or [after.node_name])
            ms = _later_mean(before.real_time, after.real_time)
            role = role_of(after.node_type, origin.role)
            found.append(Layer(after.node_name, after.node_type, origin.module, ms, role))
    whole, profiled = (fmean(taken[WARMUP:]) * 1e3 for taken in times)
    return Layers(found, whole, profiled)


def _later_mean(early: timedelta, all_calls: timedelta) -> float:
    """Milliseconds of a call after the warm-up, of means over the warm-up and over all calls."""
    total = (WARMUP + _REPEATS) * all_calls.total_seconds() - WARMUP * early.total_seconds()
    return max(0.0, total / _REPEATS * 1e3)


def _fused(compiled: Any) -> dict[str, list[str]]:
    """The names of the nodes that each layer was made of."""
    found = {}
    for layer in compiled.get_runtime_model().get_ordered_ops():
        info = layer.get_rt_info()
        names = info["originalLayersNames"].astype(str) if "originalLayersNames" in info else ""
        found[layer.get_friendly_name()] = [name for name in names.split(",") if name]
    return found

"""Latency: how long one call takes, how sure that is, and on what machine it was measured.

Public names, loaded when first used, so that the pytest plugin costs nothing where it isn't used:

- ``measure``, ``Latency``: time a call.
- ``time_artifact``, ``time_source``: what a build records of an artifact and of its source.
- ``thread_choices``: the numbers of threads that a runtime is measured with.
- ``paired``, ``Ratio``: which of two artifacts is faster, even on a noisy machine.
- ``bench``, ``Plan``, ``Limits``: what ``edgekit bench`` does; ``bench_paired`` its paired mode.
- ``compare``, ``read_report``: two reports, row by row.
- ``median_interval``: what the median of a series in time may be.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.latency.artifacts import time_artifact, time_source
    from edgekit.latency.benchmark import bench, bench_paired
    from edgekit.latency.comparison import Ratio, paired
    from edgekit.latency.interval import median_interval
    from edgekit.latency.plan import Limits, Plan
    from edgekit.latency.reports import compare, read_report
    from edgekit.latency.settings import Settings, phases, thread_choices
    from edgekit.latency.timing import Latency, measure

#: Of the report that ``bench`` gives.
SCHEMA_VERSION = 2

_HOMES = {
    "Latency": "timing",
    "Limits": "plan",
    "Plan": "plan",
    "Ratio": "comparison",
    "Settings": "settings",
    "bench": "benchmark",
    "bench_paired": "benchmark",
    "compare": "reports",
    "measure": "timing",
    "median_interval": "interval",
    "paired": "comparison",
    "phases": "settings",
    "read_report": "reports",
    "thread_choices": "settings",
    "time_artifact": "artifacts",
    "time_source": "artifacts",
}

__all__ = [
    "SCHEMA_VERSION",
    "Latency",
    "Limits",
    "Plan",
    "Ratio",
    "Settings",
    "bench",
    "bench_paired",
    "compare",
    "measure",
    "median_interval",
    "paired",
    "phases",
    "read_report",
    "thread_choices",
    "time_artifact",
    "time_source",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgekit.latency' has no attribute {name!r}")
    return getattr(import_module(f"edgekit.latency.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

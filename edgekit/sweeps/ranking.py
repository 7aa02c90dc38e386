"""Ranking: which cells of a sweep are worth a look.

Cells are compared that do the same work: one target and batch, and latencies of one kind, since a
measured and a predicted one are not alike. Their accuracy is top-1 where there are labels. Without,
it is the cosine to the source, which says something within one model only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from edgekit.sweeps.result import Result


def marks(results: Iterable[Result], accuracy_drop: float | None = None) -> dict[str, str]:
    """Name of a cell -> ``pareto`` where no other is both as fast and as accurate, and better in
    one; ``best`` for the fastest of a group.

    Args:
        accuracy_drop: points of top-1 that the best may lose to its own source; None marks none as
            the best.
    """
    groups: dict[tuple[object, ...], list[Result]] = defaultdict(list)
    for each in results:
        if each.ok and each.milliseconds is not None and accuracy(each) is not None:
            groups[_group(each)].append(each)
    found: dict[str, str] = {}
    for group in groups.values():
        found |= {each.name: "pareto" for each in group if not any(_beats(o, each) for o in group)}
        if accuracy_drop is not None:
            found |= _best(group, accuracy_drop)
    return found


def accuracy(result: Result) -> float | None:
    """What a cell is compared by: top-1, or the cosine to its source."""
    if result.top1 is not None:
        return result.top1
    return None if result.drift is None else result.drift.get("cosine")


def drop(result: Result) -> float | None:
    """Points of top-1 that the cell lost to its source."""
    if result.top1 is None or result.source_top1 is None:
        return None
    return 100 * (result.source_top1 - result.top1)


def _group(result: Result) -> tuple[object, ...]:
    alike = () if result.top1 is not None else (result.model,)
    return (result.target, result.batch, result.kind, *alike)


def _beats(one: Result, other: Result) -> bool:
    pair = [(-(each.milliseconds or 0), accuracy(each) or 0) for each in (one, other)]
    return pair[0] != pair[1] and all(a >= b for a, b in zip(*pair, strict=True))


def _best(group: list[Result], accuracy_drop: float) -> dict[str, str]:
    """The fastest that lost no more than so many points."""
    # A drop is a difference of shares of samples: 1e-9 is only for rounding.
    able = [e for e in group if (lost := drop(e)) is not None and lost <= accuracy_drop + 1e-9]
    fastest = min(able, key=lambda each: each.milliseconds or 0, default=None)
    return {} if fastest is None else {fastest.name: "best"}


def flat(result: Result, mark: str) -> dict[str, Any]:
    """A row of ``results.csv``; latency in milliseconds, size in bytes, drop in points."""
    predicted = result.predicted or {}
    drift = result.drift or {}
    shown = ("model", "precision", "target", "batch", "status", "ok", "size")
    return {
        **{name: getattr(result, name) for name in shown},
        "cosine": drift.get("cosine"),
        "max_abs": drift.get("max_abs"),
        "top1": result.top1,
        "top1_drop": drop(result),
        "latency": result.kind,
        "latency_ms": result.milliseconds,
        "low_ms": predicted.get("low"),
        "high_ms": predicted.get("high"),
        "samples_per_second": result.throughput,
        "mark": mark,
        "host": result.host,
        "bundle": result.bundle,
    }

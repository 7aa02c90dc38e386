"""Benchmark: everything that ``edgekit bench`` measures of a bundle or an artifact, as a report.

A report is ready for JSON: ``schema_version``, ``created``, ``subject``, ``environment``,
``mode``, ``settings`` and ``results``, one flat row a measurement. A row that was not measured
has a ``status`` that says why, and hides no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import interrupt, machine
from edgekit.bundle import MANIFEST
from edgekit.errors import EdgekitError
from edgekit.latency import SCHEMA_VERSION
from edgekit.latency.cell import Cell, Rows, failed, measure_cell
from edgekit.latency.comparison import in_turns
from edgekit.latency.modes import one_by_one, single_stream, throughput_rows
from edgekit.latency.plan import Plan
from edgekit.latency.settings import Settings
from edgekit.latency.subjects import Candidate, Subject
from edgekit.progress import say

if TYPE_CHECKING:
    from edgekit.latency.inputs import Point, Taken
    from edgekit.targets.runtimes import Arrays

#: Of a comparison: seconds, calls of each side at most, loads of both, and those at least.
PAIRED_SECONDS, PAIRED_CALLS, PAIRED_LOADS, PAIRED_LEAST = 10.0, 2000, 12, 6


def bench(
    path: Path | str,
    plan: Plan | None = None,
    reference: Path | None = None,
    target: str | None = None,
) -> dict[str, Any]:
    """Measure a bundle's artifacts, or one artifact, on this machine.

    Args:
        path: a bundle, an ``.onnx``, an engine (``.plan``) or an ``.mlpackage``.
        plan: what to measure; None is the latency of each artifact in its target's runtime.
        reference: whose samples are the inputs; a bundle has its own, and an ONNX file alone is
            fed random numbers, which the report says.
        target: only this target's artifacts, of a bundle.

    Raises:
        EdgekitError: there is nothing to measure, or the artifact doesn't take such calls.
    """
    plan = plan or Plan()
    subject = Subject(Path(path), reference, target)
    rows: Rows = []
    checked = [(each, *_points(each, subject, plan)) for each in _timed(subject, plan, rows)]
    for candidate, taken, base, points in checked:
        for threads in threads_for(candidate, plan):
            rows += _cells(Cell(candidate, threads, None), plan, taken, base, points)
    if plan.mode == "throughput":
        _mark_best(rows)
    return _report(subject, plan.mode, plan.as_dict(), rows)


def bench_paired(
    path: Path | str,
    other: Path | str,
    plan: Plan | None = None,
    reference: Path | None = None,
    target: str | None = None,
) -> dict[str, Any]:
    """Compare two artifacts, or those of two bundles, in turns: a ratio and its interval.

    Each artifact is compared with the other side's of the same path in its bundle, or with its
    only one. Rows have ``paired``: see ``edgekit.latency.Ratio``.

    Raises:
        EdgekitError: nothing of the two can be compared.
    """
    plan = plan or Plan()
    first = Subject(Path(path), reference, target)
    # A lone artifact to compare with has no target to choose.
    second = Subject(Path(other), reference, target if (Path(other) / MANIFEST).exists() else None)
    rows: Rows = []
    mine = list(_timed(first, plan, rows))
    theirs = list(_timed(second, plan, rows))
    for one, two in _pairs(mine, theirs, first, second):
        taken, base, points = _points(one, first, plan)
        two.taken().sized(base, plan.batches or (taken.batch or 1,), plan.shapes)
        for threads in threads_for(one, plan):
            rows += [_compared(Cell(one, threads, point), two, plan) for point in points]
    report = _report(first, "paired", plan.as_dict(), rows)
    return {**report, "other": str(second.path)}


def threads_for(candidate: Candidate, plan: Plan) -> list[int | None]:
    """The numbers of threads to measure with.

    Raises:
        EdgekitError: some were asked of a runtime that chooses its own.
    """
    if not candidate.on_host:
        if plan.threads:
            raise EdgekitError(
                f"{candidate.runtime} cannot be given threads.",
                "It computes on its device, or chooses threads itself.",
                "Drop --threads.",
            )
        return [None]
    if plan.threads:
        return list(plan.threads)
    if plan.mode == "throughput":
        return [None]  # the cores are shared out among the streams
    return list(machine.thread_counts())


def _timed(subject: Subject, plan: Plan, rows: Rows) -> Iterator[Candidate]:
    """What can be timed here; what can't becomes a row that says why."""
    for candidate in subject.candidates(plan.runtimes):
        if candidate.absent:
            rows.append(failed(Cell(candidate, None, None).identity(), _not_run(candidate)))
        else:
            yield candidate


def _not_run(candidate: Candidate) -> str:
    return f"not run: {candidate.absent}"


def _points(
    candidate: Candidate, subject: Subject, plan: Plan
) -> tuple[Taken, Arrays, list[Point]]:
    """What an artifact takes, the samples that calls are made of, and the sizes to measure."""
    taken = candidate.taken()
    base = subject.base if subject.base is not None else taken.random()
    if plan.mode == "throughput" and not (plan.batches or plan.shapes):
        return taken, base, []
    return taken, base, taken.sized(base, plan.batches, plan.shapes)


def _cells(cell: Cell, plan: Plan, taken: Taken, base: Arrays, points: list[Point]) -> Rows:
    """The rows of one artifact with one number of threads."""
    candidate, threads = cell.candidate, cell.threads
    if plan.mode != "throughput":
        timer = (single_stream if plan.mode == "single-stream" else one_by_one)(plan.limits)
        cells = [Cell(candidate, threads, point) for point in points]
        return [row for each in cells for row in measure_cell(each, plan, timer)]
    rows: Rows = []
    for streams in plan.streams or _streams(candidate):
        shared = max(1, machine.cores() // streams) if candidate.on_host else None
        given = Cell(candidate, threads or shared, None)
        rows += throughput_rows(given, taken, base, points, streams, plan.limits)
    return rows


def _streams(candidate: Candidate) -> tuple[int, ...]:
    """Calls in flight that are tried unasked."""
    if not candidate.on_host:
        return (1, 2, 4)
    return tuple(sorted({1, machine.cores()}))


def _mark_best(rows: Rows) -> None:
    """Say of each artifact and runtime which row gives the most samples a second."""
    groups: dict[tuple[str, str], Rows] = {}
    for row in rows:
        if row["status"] == "measured":
            groups.setdefault((row["artifact"], row["runtime"]), []).append(row)
    for group in groups.values():
        most = max(group, key=lambda row: row["throughput"])
        for row in group:
            row["best"] = row is most


def _pairs(
    mine: list[Candidate], theirs: list[Candidate], first: Subject, second: Subject
) -> list[tuple[Candidate, Candidate]]:
    """Which artifacts are compared with which."""
    pairs = []
    for one in mine:
        same = [two for two in theirs if two.runtime == one.runtime]
        named = [two for two in same if two.artifact == one.artifact]
        if named or len(same) == len(mine) == 1:
            pairs.append((one, (named or same)[0]))
    if not pairs:
        sides = [
            ", ".join(f"{each.artifact} ({each.runtime})" for each in side) or "nothing"
            for side in (mine, theirs)
        ]
        raise EdgekitError(
            f"Nothing of {first.path} can be compared with {second.path} here.",
            f"The first has {sides[0]}, the second {sides[1]}.",
            "Give two artifacts that one runtime runs here, or name it with --runtime.",
        )
    return pairs


def _compared(cell: Cell, other: Candidate, plan: Plan) -> dict[str, Any]:
    """The row of one comparison."""
    one, point, limits = cell.candidate, cell.point, plan.limits
    if point is None:
        raise ValueError("a comparison without inputs")
    interrupt.check()
    say(f"Comparing {one.artifact} with {other.artifact} in {one.runtime}")
    settings = Settings(
        point.calls[0],
        limits.warmup,
        limits.iterations or PAIRED_CALLS,
        limits.seconds or PAIRED_SECONDS,
    )
    try:
        with cell.watch() as watch:
            ratio = in_turns(
                lambda: one.opens(cell.threads),
                lambda: other.opens(cell.threads),
                settings,
                cell.threads,
                PAIRED_LOADS,
                PAIRED_LEAST,
            )
    except EdgekitError as error:
        return failed(cell.identity(), " ".join(f"failed: {error.what} {error.why}".split()))
    return {
        **cell.identity(),
        "status": "measured",
        "against": str(other.path or other.artifact),
        "paired": {**ratio.as_dict(), "verdict": ratio.verdict},
        "watch": watch.report(),
        # What hits both sides alike is no reason to doubt their ratio.
        "doubts": [],
    }


def _report(subject: Subject, mode: str, settings: dict[str, Any], rows: Rows) -> dict[str, Any]:
    """The report; bad input where nothing at all could be measured."""
    reasons = [row["status"] for row in rows if row["status"].startswith("failed")]
    if rows and len(reasons) == len(rows):
        raise EdgekitError(f"Nothing of {subject.path} could be measured.", reasons[0])
    inputs = str(subject.reference) if subject.reference else "random numbers"
    return report_of(str(subject.path), inputs, mode, settings, rows)


def report_of(
    subject: str, inputs: str, mode: str, settings: dict[str, Any], rows: Rows
) -> dict[str, Any]:
    """A report of rows, with when and where it was made."""
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "subject": subject,
        "inputs": inputs,
        "environment": machine.environment(),
        "mode": mode,
        "settings": settings,
        "results": rows,
    }

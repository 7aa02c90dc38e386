"""Fixture: what ``edgekit_benchmark`` gives a test. See ``edgekit.latency.pytest_plugin``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import EdgekitError
from edgekit.latency.benchmark import bench, bench_paired
from edgekit.latency.cell import figures, memory
from edgekit.latency.comparison import Ratio
from edgekit.latency.plan import Limits, Plan
from edgekit.latency.subjects import Candidate, Subject
from edgekit.latency.timing import measure
from edgekit.machine import Watch

#: Times that a call is measured until it is within its budgets.
ATTEMPTS = 3


class Result:
    """What was measured: figures in milliseconds, ``row`` with all of them.

    Of a stream it is the step; ``prefill`` is the other call's row.
    """

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.row = rows[-1]
        self.prefill = rows[0] if len(rows) > 1 else None

    @property
    def p50(self) -> float:
        """Median."""
        return float(self.row["latency_ms"]["p50"])

    @property
    def p90(self) -> float:
        """Nine of ten calls take at most this."""
        return float(self.row["latency_ms"]["p90"])

    @property
    def p99(self) -> float:
        """99 of 100 calls take at most this."""
        return float(self.row["latency_ms"]["p99"])

    @property
    def throughput(self) -> float:
        """Samples a second, one call after another."""
        return float(self.row["throughput"])

    @property
    def peak_memory_mb(self) -> float | None:
        """Mebibytes that loading and running added at their height; None if unknown."""
        found = self.row.get("peak_memory_mb")
        return None if found is None else float(found)

    @property
    def doubts(self) -> list[str]:
        """Why the figures can't be trusted, if they can't."""
        return list(self.row["doubts"])

    def __repr__(self) -> str:
        return f"<p50 {self.p50:.3f} ms, p90 {self.p90:.3f} ms, p99 {self.p99:.3f} ms>"


class Benchmark:
    """The fixture: call it to measure, ``paired`` to compare."""

    def __init__(self, name: str, judge: bool, keep: Callable[[dict[str, Any]], None]) -> None:
        self._name, self._judge, self._keep = name, judge, keep
        self._calls = 0

    def __call__(
        self,
        subject: str | Path | Callable[[], object],
        *,
        target: str | None = None,
        runtime: str | None = None,
        threads: int = 1,
        batch: int | None = None,
        limits: Limits | None = None,
        max_p50_ms: float | None = None,
        max_p90_ms: float | None = None,
        max_p99_ms: float | None = None,
    ) -> Result:
        """Measure a bundle, an artifact or a function; fail if it is over a budget.

        Args:
            subject: a path, or a function that is called without arguments.
            target: whose artifact, of a bundle with several.
            runtime: as ``edgekit bench --runtime``.
            threads: of runtimes that compute on the CPU.
            batch: samples a call; of a function, what its throughput is counted in.
            limits: when to stop; 10 untimed calls, then 100 or 3 seconds.
            max_p50_ms, max_p90_ms, max_p99_ms: budgets in milliseconds.

        Raises:
            EdgekitError: there is no such artifact, or it doesn't take such calls.
        """
        limits = limits or Limits()
        if callable(subject):
            call = subject
            attempt = lambda: _function_rows(call, batch or 1, limits)  # noqa: E731
        else:
            path = Path(subject)
            candidate = _candidate(path, target, runtime)
            plan = _plan(candidate, threads, limits, batch)
            attempt = lambda: _artifact_rows(path, target, candidate, plan)  # noqa: E731
        budgets = {"p50": max_p50_ms, "p90": max_p90_ms, "p99": max_p99_ms}
        found, over = self._attempts(attempt, budgets)
        self._save(found.row)
        if over and self._judge:
            doubts = "".join(f"\n{text}" for text in found.doubts)
            pytest.fail(f"Too slow in {ATTEMPTS} attempts: {over}.{doubts}", pytrace=False)
        return found

    def paired(
        self,
        subject: str | Path,
        other: str | Path,
        *,
        target: str | None = None,
        runtime: str | None = None,
        threads: int = 1,
        limits: Limits | None = None,
        max_ratio: float | None = None,
    ) -> Ratio:
        """Compare two bundles or artifacts in turns; fail if the first is surely slower.

        Args:
            max_ratio: the first may take so many times as long as the other; 1.05 lets five
                percent pass.
        """
        candidate = _candidate(Path(subject), target, runtime)
        plan = _plan(candidate, threads, limits or Limits())
        report = bench_paired(subject, other, plan, None, target)
        row = _measured(report["results"], candidate)[-1]
        self._save(row)
        fields = {name: value for name, value in row["paired"].items() if name != "verdict"}
        ratio = Ratio(**fields)
        if max_ratio is not None and ratio.low > max_ratio and self._judge:
            interval = f"{ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
            pytest.fail(
                f"{subject} takes {interval} of {other}; {max_ratio:g} is allowed.", pytrace=False
            )
        return ratio

    def _attempts(
        self, attempt: Callable[[], list[dict[str, Any]]], budgets: dict[str, float | None]
    ) -> tuple[Result, str]:
        """The best attempt, and how it is over its budgets, or ``""``."""
        tried: list[Result] = []
        while len(tried) < (ATTEMPTS if self._judge else 1):
            tried.append(Result(attempt()))
            if not _over(tried[-1], budgets):
                return tried[-1], ""
        best = min(tried, key=lambda found: found.p50)
        return best, _over(best, budgets)

    def _save(self, row: dict[str, Any]) -> None:
        """Under the test's name, which stays the same from run to run."""
        self._calls += 1
        name = self._name if self._calls == 1 else f"{self._name} #{self._calls}"
        self._keep({**row, "artifact": name, "target": None, "measured": row["artifact"]})


def _over(found: Result, budgets: dict[str, float | None]) -> str:
    values = {name: getattr(found, name) for name in budgets}
    return ", ".join(
        f"{name} is {values[name]:.3f} ms, the budget {budget:g} ms"
        for name, budget in budgets.items()
        if budget is not None and values[name] > budget
    )


def _candidate(path: Path, target: str | None, runtime: str | None) -> Candidate:
    """The artifact that is meant; skips the test where it cannot be timed here."""
    found = Subject(path, None, target).candidates(() if runtime is None else (runtime,))
    if len({each.target for each in found}) > 1:
        known = ", ".join(dict.fromkeys(str(each.target) for each in found))
        raise EdgekitError(
            f"{path} has artifacts for several targets: {known}.", "", "Pass target=..."
        )
    # A target's last artifact is what runs on the device; the others lead to it.
    if found[-1].absent:
        pytest.skip(f"{found[-1].artifact} is not run: {found[-1].absent}")
    return found[-1]


def _plan(candidate: Candidate, threads: int, limits: Limits, batch: int | None = None) -> Plan:
    return Plan(
        runtimes=(candidate.runtime,),
        threads=(threads,) if candidate.on_host else (),
        batches=() if batch is None else (batch,),
        limits=limits,
    )


def _artifact_rows(
    path: Path, target: str | None, candidate: Candidate, plan: Plan
) -> list[dict[str, Any]]:
    return _measured(bench(path, plan, None, target)["results"], candidate)


def _measured(rows: list[dict[str, Any]], candidate: Candidate) -> list[dict[str, Any]]:
    """The rows of one artifact.

    Raises:
        EdgekitError: it could not be measured.
    """
    found = [row for row in rows if row["artifact"] == candidate.artifact]
    for row in found:
        if row["status"] != "measured":
            raise EdgekitError(f"{candidate.artifact} could not be measured.", row["status"])
    return found


def _function_rows(call: Callable[[], object], batch: int, limits: Limits) -> list[dict[str, Any]]:
    """The row of a function: no load, and no runtime of ours."""
    with memory() as used, Watch() as watch:
        latency = measure(
            call, batch, limits.warmup, limits.iterations or 100, limits.seconds or 3.0
        )
    return [
        {
            "artifact": getattr(call, "__qualname__", type(call).__name__),
            "runtime": "python",
            **dict.fromkeys(("threads", "shapes", "device_ms", "cold")),
            "batch": batch,
            "phase": "",
            "streams": 1,
            "status": "measured",
            **figures(latency, watch.report(), batch),
            **used,
        }
    ]

"""Run: a sweep from its grid to its results, going on where an earlier one stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from edgekit import flow, targets
from edgekit.errors import EdgekitError
from edgekit.progress import say
from edgekit.sweeps import ranking, result
from edgekit.sweeps.cell import Task
from edgekit.sweeps.grid import Cell, Grid
from edgekit.sweeps.processes import in_processes
from edgekit.sweeps.result import Result
from edgekit.sweeps.store import Store

#: Seconds to wait for a device that was there and has gone.
WAIT = 600.0


def sweep(
    grid: Grid | Path | dict[str, Any],
    out: Path,
    jobs: int = 1,
    ray: str | None = None,
    wait: float = WAIT,
) -> list[Result]:
    """Build, check and measure every cell of a grid; what is done already is kept.

    A cell that fails is a row that says why, and is tried again by the next run.

    Args:
        grid: a grid, its file, or its fields.
        out: the sweep's folder: rows, bundles, logs and ``results.csv``.
        jobs: cells at once on this machine. With several, latency is measured while no other cell
            is at work.
        ray: address of a Ray cluster to use in place of this machine; ``auto`` finds the one here.
        wait: seconds to wait for a device that left the cluster.

    Returns:
        A row a cell, in the grid's order.

    Raises:
        EdgekitError: the grid is malformed, ``out`` holds something else, or there is no cluster.
    """
    made = _grid(grid)
    store = Store(out)
    with store.opened(made):
        run = _Run(store, made.cells())
        try:
            if ray is None:
                run.here(jobs)
            else:
                run.on_cluster(ray, wait)
        finally:
            rows = run.rows()
            marks = ranking.marks(rows)
            store.write_csv([ranking.flat(row, marks.get(row.name, "")) for row in rows])
    return rows


def _grid(given: Grid | Path | dict[str, Any]) -> Grid:
    if isinstance(given, Grid):
        return given
    return Grid.read(given) if isinstance(given, Path) else Grid.check(given, "the grid")


class _Run:
    """One run: what is to be done, and the rows so far."""

    def __init__(self, store: Store, cells: list[Cell]) -> None:
        self.store, self.cells = store, cells
        self._rows: dict[str, Result] = {}
        self._keys: dict[str, str] = {}
        self._start = time.monotonic()
        self._total = self._count = 0

    def rows(self) -> list[Result]:
        """The rows there are, in the grid's order."""
        return [self._rows[cell.name] for cell in self.cells if cell.name in self._rows]

    def here(self, jobs: int) -> None:
        """Do what is left on this machine."""
        left = self._left(frozenset())
        if jobs > 1 and left:
            say(f"{jobs} cells at once; each is measured while no other is at work.")
        lock = self.store.path / ".turns" if jobs > 1 else None
        tasks = (self._task(cell, lock) for cell in _leaders_first(left))
        self._collect(in_processes(tasks, self.store.logs, jobs))

    def on_cluster(self, address: str, wait: float) -> None:
        """Do what is left on a Ray cluster."""
        from edgekit.sweeps.cluster import Cluster

        with Cluster(address) as cluster:
            left = self._left(cluster.offered())
            tasks = [self._task(cell, None) for cell in left]
            self._collect(cluster.done(tasks, self.store.logs, wait))

    def _left(self, offered: frozenset[str]) -> list[Cell]:
        """Cells to do; the rows of all others are in place.

        Args:
            offered: targets that can be measured now: a prediction for them is not the last word.
        """
        left = [cell for cell in self.cells if not self._settled(cell, offered)]
        self._total = len(left)
        done = len(self.cells) - len(left)
        say(f"{len(self.cells)} cells" + (f", {done} of which need nothing" if done else "") + ".")
        return left

    def _settled(self, cell: Cell, offered: frozenset[str]) -> bool:
        """Whether there is nothing to do for a cell; its row then says what is known."""
        try:
            targets.load(cell.target).require(cell.precision)
        except EdgekitError as error:
            self._keep(result.skipped(cell, error))
            return True
        try:
            key = self._keys[cell.name] = flow.request(cell.recipe)
        except EdgekitError as error:
            self._keep(result.failed(cell, error))
            return True
        held = self.store.read(cell)
        if held is None or held.key != key or not held.ok or not self.store.has_bundle(held):
            return False
        self._rows[cell.name] = held
        return held.kind == "measured" or cell.target not in offered

    def _task(self, cell: Cell, lock: Path | None) -> Task:
        like = [
            self.store.bundles / row.bundle
            for row in sorted(self.rows(), key=lambda row: row.precision != cell.precision)
            if row.bundle and row.ok and (row.model, row.batch) == (cell.model, cell.batch)
        ]
        return Task(
            cell=cell,
            bundle=self.store.bundles / cell.name,
            answer=self.store.logs / f".{cell.name}.json",
            like=tuple(like),
            lock=lock,
        )

    def _collect(self, results: Iterator[Result]) -> None:
        """Keep results as they come."""
        with closing(results):  # type: ignore[type-var]
            for found in results:
                self._keep(found)
                self._count += 1
                spent = time.monotonic() - self._start
                left = spent / self._count * (self._total - self._count)
                text = f"{self._count} of {self._total}: {_brief(found)}"
                say(text + (f"; {left:.0f} s left" if left else ""))

    def _keep(self, found: Result) -> None:
        row = found.model_copy(update={"key": self._keys.get(found.name, "")})
        self.store.write(row)
        self._rows[found.name] = row


def _leaders_first(cells: list[Cell]) -> list[Cell]:
    """One cell of each model, precision and batch first: the others take over its calibration."""
    seen: dict[tuple[object, ...], int] = {}

    def place(cell: Cell) -> int:
        point = (cell.model, cell.precision, cell.batch)
        seen[point] = seen.get(point, -1) + 1
        return seen[point]

    places = {cell.name: place(cell) for cell in cells}
    return sorted(cells, key=lambda cell: places[cell.name])


def _brief(row: Result) -> str:
    text = f"{row.model} {row.precision} {row.target} batch {row.batch}: {row.status}"
    return text if row.milliseconds is None else f"{text}, {row.milliseconds:.2f} ms {row.kind}"

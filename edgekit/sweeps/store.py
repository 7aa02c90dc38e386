"""Store: a sweep's folder. A result is written when it comes, whole or not at all.

``results/CELL.json`` is a row, ``bundles/CELL`` its bundle, ``logs/CELL.log`` what its process
said, ``results.csv`` all rows of the last grid, and ``sweep.json`` that grid.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from edgekit import files
from edgekit.errors import EdgekitError
from edgekit.sweeps.grid import Cell, Grid
from edgekit.sweeps.result import Result

GRID = "sweep.json"
SCHEMA_VERSION = 1


class Store:
    """The folder; ``opened`` takes it for one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results, self.bundles, self.logs = (
            path / name for name in ("results", "bundles", "logs")
        )

    @contextmanager
    def opened(self, grid: Grid) -> Iterator[None]:
        """Make the folder, and keep others out of it.

        Raises:
            EdgekitError: it holds something else, or another sweep is writing in it.
        """
        path = self.path
        occupied = path.exists() and (not path.is_dir() or any(path.iterdir()))
        if occupied and not (path / GRID).exists():
            raise EdgekitError(
                f"{path} exists and is not a sweep's folder.",
                "edgekit does not write among files that it did not make.",
                "Choose another --output, or remove it.",
            )
        for folder in (self.results, self.bundles, self.logs):
            files.make_folder(folder)
        try:
            with FileLock(path / ".lock", blocking=False):
                held = {"schema_version": SCHEMA_VERSION, **grid.model_dump(mode="json")}
                files.write_text(path / GRID, json.dumps(held, indent=1))
                yield
        except Timeout as error:
            raise EdgekitError(f"Another sweep is writing to {path}.") from error

    def read(self, cell: Cell) -> Result | None:
        """The cell's row; None if there is none that can be read."""
        try:
            text = (self.results / f"{cell.name}.json").read_text(encoding="utf-8")
            return Result.model_validate_json(text)
        except (OSError, UnicodeDecodeError, ValidationError):
            return None

    def write(self, result: Result) -> None:
        """Keep a row."""
        path = self.results / f"{result.name}.json"
        files.write_text(path, result.model_dump_json(indent=1))

    def has_bundle(self, result: Result) -> bool:
        """Whether the bundle that a row tells of is there."""
        return result.bundle is not None and (self.bundles / result.bundle).is_dir()

    def write_csv(self, rows: list[dict[str, Any]]) -> None:
        """All rows as ``results.csv``; see ``edgekit.sweeps.ranking.flat`` for the columns."""
        if not rows:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        files.write_text(self.path / "results.csv", text.getvalue())

"""Cell: one point of a grid, done in a process of its own: ``python -m edgekit.sweeps``.

The task comes as one line on stdin; the result is written to the file that the task names. What is
said on the way goes to stderr. The process ends with the one that started it, however that ends.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from edgekit import files, flow, progress
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError
from edgekit.recipe import Recipe
from edgekit.sweeps import board, result, turns
from edgekit.sweeps.grid import Cell
from edgekit.sweeps.result import Result


class Task(BaseModel):
    """What a process is to do.

    Attributes:
        cell: the cell.
        bundle: the folder to build in.
        answer: the file to write the result to.
        like: bundles of other cells, whose work on the same inputs is taken over.
        measure: whether this machine may say how long a call takes on the target.
        lock: a file by which cells of this machine take turns; None if there is one at a time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: Cell
    bundle: Path
    answer: Path
    like: tuple[Path, ...] = ()
    measure: bool = True
    lock: Path | None = None


def do(task: Task) -> Result:
    """Build the cell's bundle, check it, and measure or predict its latency."""
    start = time.monotonic()
    made = _built(task)
    found = result.of_bundle(task.cell, made)
    update: dict[str, Any] = {"bundle": task.bundle.name, "host": socket.gethostname()}
    if found.ok and found.kind is None:
        update |= _predicted(task.cell.recipe, task.bundle)
    return found.model_copy(update={**update, "seconds": round(time.monotonic() - start, 1)})


def _built(task: Task) -> Bundle:
    """The bundle; with a lock, measured after it was built, when no other cell is at work."""
    recipe, out = task.cell.recipe, task.bundle
    with turns.building(task.lock):
        alone = task.lock is None
        made = flow.build(recipe, out, like=task.like, measure=task.measure and alone)
    if not task.measure:
        return made
    with turns.measuring(task.lock):
        if any(e["status"] == flow.NOT_ASKED for row in made.manifest.rows for e in row.latency):
            made = flow.build(recipe, out)
        return board.measured(made, task.cell.target)


def _predicted(recipe: Recipe, bundle: Path) -> dict[str, Any]:
    """The fields of a result that hold a prediction, or why there is none."""
    from edgekit.predicting import predict

    if recipe.passes:
        smaller = {"model": f"compressed/{bundle / flow.COMPRESSED}", "passes": ()}
        recipe = recipe.model_copy(update={**smaller, "checkpoint": None, "arguments": {}})
    try:
        (found,) = predict(recipe)
    except EdgekitError as error:
        return {"not_predicted": str(error)}
    shown = {name: getattr(found, name) for name in ("milliseconds", "low", "high", "memory_mb")}
    return {"predicted": {**shown, "basis": found.basis.text, "notes": list(found.basis.notes)}}


def _end_with_parent() -> None:
    """End this process and all that it started when its stdin closes: its parent is gone."""
    while os.read(0, 1):
        pass
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main() -> None:
    """Do the task that stdin names."""
    task = Task.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    progress.enable()
    try:
        found = do(task)
    except EdgekitError as error:
        progress.say(str(error))
        found = result.failed(task.cell, error)
    files.write_text(task.answer, found.model_dump_json(indent=1))

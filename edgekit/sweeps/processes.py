"""Processes: cells done on this machine, each in a process that can harm no other."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgekit import interrupt
from edgekit.errors import EdgekitError
from edgekit.sweeps.cell import Task
from edgekit.sweeps.result import Result, failed

#: Seconds between two looks at the processes.
LOOK = 0.05
#: Of a crashed cell's log, so many last characters are in its row.
TAIL = 4000
#: Seconds that a process has to end after it was asked to.
GRACE = 5.0


class Process:
    """A cell at work. It ends when ``stop`` is called or this process ends, however that ends.

    Args:
        task: what it does; the answer's file is removed once it was read.
        log: the file for all that it prints.
    """

    def __init__(self, task: Task, log: Path) -> None:
        self.task, self._log = task, log
        task.answer.unlink(missing_ok=True)
        with log.open("wb") as stream:
            # A group of its own: Ctrl-C reaches it through us, and ends all that it started.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edgekit.sweeps"],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        line = task.model_dump_json(exclude_unset=True) + "\n"
        if self._process.stdin is None:
            raise RuntimeError("no stdin")
        with contextlib.suppress(BrokenPipeError):  # it ended at once; its log says why
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()

    def running(self) -> bool:
        """Whether it is still at work."""
        return self._process.poll() is None

    def result(self) -> Result:
        """What it answered; if it did not, how it ended."""
        code = self._process.wait()
        self.stop()
        try:
            return Result.model_validate_json(self.task.answer.read_text(encoding="utf-8"))
        except OSError:
            return self._crashed(code)
        finally:
            self.task.answer.unlink(missing_ok=True)

    def _crashed(self, code: int) -> Result:
        text = self._log.read_text(encoding="utf-8", errors="replace")[-TAIL:].strip()
        last = text.rpartition("\n")[2]
        if code < 0:
            last = f"killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                last += ", as the system does when memory runs out"
        what = last or f"it ended with exit code {code} and no word"
        row = failed(self.task.cell, EdgekitError(what), "crashed")
        return row.model_copy(update={"detail": f"{what}\n{text}".strip()})

    def stop(self) -> None:
        """End it and all that it started."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        self._signal(signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def _signal(self, number: int) -> None:
        if not hasattr(os, "killpg"):
            self._process.kill()
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def in_processes(tasks: Iterable[Task], logs: Path, jobs: int) -> Iterator[Result]:
    """Results as they come, of so many processes at once; what runs at the end is stopped.

    Args:
        tasks: taken one by one, when there is room for the next.
    """
    waiting, running = iter(tasks), list[Process]()
    more = True
    try:
        while more or running:
            interrupt.check()
            while more and len(running) < jobs:
                task = next(waiting, None)
                more = task is not None
                if task is not None:
                    running.append(Process(task, logs / f"{task.cell.name}.log"))
            ended = [process for process in running if not process.running()]
            for process in ended:
                running.remove(process)
                yield process.result()
            if not ended:
                time.sleep(LOOK)
    finally:
        for process in running:
            process.stop()

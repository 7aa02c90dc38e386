"""A run that outlives the terminal, or the connection, that started it.

Beside the kit lie ``run.lock``, which is locked for as long as the run lives, however it ends;
``run.json``, its options and process; ``run.log``, all that it says; and ``run.exit``, its exit
code, once it has one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, Sequence

from .files import read_json, write
from .problem import Problem, say

LOCK, STATE, LOG, EXIT = "run.lock", "run.json", "run.log", "run.exit"
#: What stays with whoever starts the run.
OURS = ("--background", "--follow")
#: Runs the command and keeps its exit code, in a file that is complete or not there. A shell, so
#: that the code is kept as well where the process is killed, as when memory runs out.
KEEPER = 'exit=$1; shift; "$@"; echo $? > "$exit.partial" && mv "$exit.partial" "$exit"'


def start(folder: Path, arguments: Sequence[str]) -> int:
    """Run the kit with these arguments, detached; join the run that is going on, if there is one.

    Returns:
        0: it runs.

    Raises:
        Problem: a run with other arguments is going on.
    """
    options = [argument for argument in arguments if argument not in OURS]
    lock = _lock(folder)
    if lock is None:
        return _join(folder, options)
    with lock, (folder / LOG).open("wb") as log:
        for name in (EXIT, STATE):
            if (folder / name).exists():
                (folder / name).unlink()
        kit = [sys.executable, str(folder / "run.pyz"), *options]
        process = subprocess.Popen(
            ["sh", "-c", KEEPER, "sh", str(folder / EXIT), *kit],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # The lock is free again when the last process that holds it has ended.
            pass_fds=[lock.fileno()],
            env=dict(os.environ, PYTHONUNBUFFERED="1"),
        )
        started = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        state = {"arguments": options, "process": process.pid, "started": started}
        write(folder / STATE, state)
    say(f"Running in the background; --follow shows how it goes, from {folder / LOG}.")
    return 0


def _join(folder: Path, options: Sequence[str]) -> int:
    state = _state(folder)
    if state["arguments"] != list(options):
        given = " ".join(state["arguments"]) or "none"
        raise Problem(
            f"A run with other options is going on in {folder}.",
            f"Its options: {given}; started {state['started']}.",
            "Give the same options to join it, wait until it has ended, or end it with --stop.",
        )
    say(f"Joining the run that was started {state['started']}.")
    return 0


def follow(folder: Path) -> int:
    """Print the log as it grows, until the run has ended. Returns the run's exit code.

    Raises:
        Problem: nothing was started here, or the run was killed.
    """
    if not (folder / LOG).exists():
        raise Problem(f"Nothing was started in {folder}.", "", "Start it with --background.")
    parent = os.getppid()
    with (folder / LOG).open("rb") as log:
        while True:
            # Looked at before reading, so that its last words are read.
            running = is_running(folder)
            block = log.read()
            sys.stdout.buffer.write(block)
            sys.stdout.flush()
            if not running:
                return _exit_code(folder)
            if os.getppid() != parent:
                raise Problem("Whoever followed the run has gone; the run goes on.")
            if not block:
                time.sleep(0.2)


def stop(folder: Path) -> int:
    """End the run that is going on. Returns 0: none is left."""
    if not is_running(folder):
        say("No run is going on.")
        return 0
    process = int(_state(folder)["process"])
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, number)
        for _ in range(50):
            if not is_running(folder):
                say("The run was stopped.")
                return 0
            time.sleep(0.1)
    raise Problem(f"The run in {folder} could not be stopped.", f"Its process is {process}.")


def is_running(folder: Path) -> bool:
    """Whether a run is going on in this folder."""
    lock = _lock(folder, tries=1)
    if lock is None:
        return True
    lock.close()
    return False


def _lock(folder: Path, tries: int = 20) -> IO[bytes] | None:
    """The lock of the folder's run; None if another process holds it.

    It is tried for a second by default, since ``is_running`` holds it for an instant.
    """
    import fcntl

    file = (folder / LOCK).open("ab")
    for left in reversed(range(tries)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if left:
                time.sleep(0.05)
    file.close()
    return None


def _state(folder: Path) -> dict[str, Any]:
    """What is known of the run that is going on; it is written just after the run has started."""
    for _ in range(100):
        if (folder / STATE).exists():
            return read_json(folder / STATE)
        time.sleep(0.05)
    raise Problem(f"{folder / STATE} is missing.", "Who started the run was killed.", "Wait.")


def _exit_code(folder: Path) -> int:
    path = folder / EXIT
    code = int(path.read_text(encoding="utf-8")) if path.exists() else None
    if code is None:
        raise Problem(
            "The run ended without an exit code.",
            "It was stopped, or the device was restarted.",
            "Start it again; an engine that was finished is used again.",
        )
    if code > 128:
        raise Problem(
            f"The run was ended by signal {code - 128}.",
            "Signal 9 mostly means that memory ran out." if code == 137 else "",
            "Close other programs on the device and start it again.",
        )
    return code

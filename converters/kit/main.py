"""The kit's command line."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from pathlib import Path
from typing import Any, Sequence

from .check import Check
from .files import read_json
from .problem import Problem, say

#: Of kit.json and result.json.
SCHEMA_VERSION = 3


def main(folder: Path, text: str, arguments: Sequence[str] | None = None) -> int:
    """The command line, for the kit in a folder; ``text`` is its help. Returns the exit code."""
    options = _parser(folder, text).parse_args(arguments)
    try:
        return _do(folder, options, sys.argv[1:] if arguments is None else arguments)
    except Problem as problem:
        sys.stderr.write(f"Error: {problem}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted: nothing half-written is left.\n")
        return 130
    except Exception:  # noqa: BLE001 - it must not end with 1: that says that the outputs differ
        sys.stderr.write(f"{traceback.format_exc()}Error: a fault in the kit; please report it.\n")
        return 2


def _do(folder: Path, options: argparse.Namespace, arguments: Sequence[str]) -> int:
    if options.follow and not options.background:
        from . import background

        return background.follow(folder)
    if options.stop:
        from . import background

        return background.stop(folder)
    kit = read_json(folder / "kit.json")
    if options.check:
        return _check(folder, kit, options)
    if options.background:
        from . import background

        return background.start(folder, arguments)
    if options.cold_start:
        from .flow import cold_start

        return cold_start(folder, kit)
    options.result.unlink(missing_ok=True)
    check = Check(folder, kit, options)
    check.require()
    # Only now, as the check is what tells that NumPy is missing.
    from .flow import run

    return run(folder, kit, options, check)


def _check(folder: Path, kit: dict[str, Any], options: argparse.Namespace) -> int:
    """Say what fits and what does not. Returns 0 if nothing is in the way, else 2."""
    check = Check(folder, kit, options)
    if options.json:
        say(json.dumps(check.report(), indent=2))
    else:
        for finding in check.findings:
            say(str(finding))
        say("This device fits the kit." if check.fits else "This device does not fit the kit.")
    return 0 if check.fits else 2


def _parser(folder: Path, text: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.pyz", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--check", action="store_true", help="only say whether this device fits the kit")
    add("--json", action="store_true", help="the check as JSON")
    add("--mode", choices=("latency", "single-stream"), default="latency", help="how to time")
    add("--warmup", type=_count, default=10, help="runs before the timed ones (10)")
    add("--iterations", type=_count, help="least timed runs (100; 1024 in single-stream)")
    add("--seconds", type=_time, help="least seconds of timed runs (2; 60 in single-stream)")
    add("--profile", action="store_true", help="time each layer as well")
    add("--rebuild", action="store_true", help="build even if engine.plan is up to date")
    add("--result", type=Path, default=folder / "result.json", help="where to write the result")
    add("--any-version", action="store_true", help="use a TensorRT that the kit isn't made for")
    add("--any-gpu", action="store_true", help="use a GPU that the kit isn't made for")
    add("--compute-capability", help="GPU to build for, e.g. 8.9 (tensorrt_rtx only)")
    add("--background", action="store_true", help="go on without this terminal, into run.log")
    add("--follow", action="store_true", help="show run.log as it grows; end as that run ends")
    add("--stop", action="store_true", help="end the run that was started with --background")
    add("--cold-start", action="store_true", help=argparse.SUPPRESS)
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _time(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 86400:
        raise argparse.ArgumentTypeError("must be 0 to 86400 seconds")
    return seconds

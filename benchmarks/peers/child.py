"""Runs one peer on one source, in the peer's own environment; nothing of edgekit is needed.

    VENV/bin/python child.py REQUEST.json

The request names a module beside this file, the folder of the source, the jobs (a variant and a
file to write each) and the report to write. A module has ``load(folder, variant)``, which is not
timed, and ``quantize(loaded, variant, out)``. Time is of ``quantize``; peak memory is what both
add to the process after the module's imports. A job that fails is reported with its reason.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any


def main(request: dict[str, Any]) -> None:
    """Do every job of a request, and write the report after each."""
    peer = importlib.import_module(request["module"])
    report: dict[str, Any] = {}
    for job in request["jobs"]:
        report[job["name"]] = run(peer, Path(request["source"]), job)
        Path(request["report"]).write_text(json.dumps(report), encoding="utf-8")


def run(peer: Any, source: Path, job: dict[str, str]) -> dict[str, Any]:
    """Seconds and megabytes of one job, or why there are none."""
    out = Path(job["out"])
    before = reset_peak()
    try:
        loaded = peer.load(source, job["variant"])
        start = time.perf_counter()
        peer.quantize(loaded, job["variant"], out)
        seconds = time.perf_counter() - start
    except Exception as error:  # noqa: BLE001 - the reason is the result
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        sys.stderr.write(traceback.format_exc())
        return {"failed": f"{reason[:300]} ({Path(where.filename).name}:{where.lineno})"}
    return {"seconds": seconds, "peak_mb": (status("VmHWM") - before) / 2**10}


def reset_peak() -> float:
    """Start the process's high-water mark of memory anew; resident kilobytes now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return status("VmRSS")


def status(field: str) -> float:
    """A line of /proc/self/status, in kilobytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))

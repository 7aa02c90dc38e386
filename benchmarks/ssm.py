"""State-space models against attention, and our export against transformers' own.

    python benchmarks/ssm.py                      # everything; an hour on two quiet cores
    python benchmarks/ssm.py --longest 1024       # the shorter lengths only
    python benchmarks/ssm.py --markdown docs/benchmarks.md

Four models of one width, depth and number of parameters (benchmarks/ssm_models.py) take 64 to
65,536 tokens: in PyTorch, compiled, by transformers' own export and by edgekit's, in ONNX
Runtime. Each figure is measured in a process of its own (benchmarks/ssm_cell.py), and kept in
.peers/ssm: a killed run goes on where it stopped. Ratios are of two files that took turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ssm_models
import ssm_report

from edgekit.files import write_text
from edgekit.machine import environment
from edgekit.progress import say

ROOT = Path(__file__).parents[1]
ROOM = ROOT / ".peers" / "ssm"
RESULT = Path(__file__).parent / "results" / "ssm.json"
LENGTHS = (64, 256, 1024, 4096, 16384, 65536)
#: Contexts after which single tokens are timed; growing caches are followed to the second.
CONTEXTS, CACHED = (64, 1024, 4096, 16384, 102400), 16384
PROMPT = 220_000
THREADS = 2
#: Seconds after which a cell is given up.
LIMIT = 300


class Cells:
    """Measurements by name, kept on disk."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path, self.limit = path, limit
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, model: str, way: str, length: int, threads: int = THREADS) -> dict[str, Any]:
        """One measurement, or ``{"failed": why}``."""
        key = f"{model} {way} {length} {threads}"
        if key not in self.found:
            say(key)
            self.found[key] = self._measure(model, way, length, threads)
            write_text(self.path, json.dumps(self.found, indent=1))
        found: dict[str, Any] = self.found[key]
        return found

    def _measure(self, model: str, way: str, length: int, threads: int) -> dict[str, Any]:
        folder = self.path.parent / model
        (folder / "made").mkdir(exist_ok=True)
        script = Path(__file__).with_name("ssm_cell.py")
        words = [script, way, folder, length, folder / "made", threads]
        try:
            run = subprocess.run(
                [sys.executable, *map(str, words)],
                capture_output=True,
                text=True,
                timeout=self.limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"not done in {self.limit} s"}
        if run.returncode:
            lines = [line for line in run.stderr.splitlines() if line.strip()]
            killed = f"killed by signal {-run.returncode}" if run.returncode < 0 else "no reason"
            return {"failed": lines[-1][:200] if lines else killed}
        answer: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
        return answer


def model_rows(cells: Cells, model: str, longest: int) -> list[dict[str, Any]]:
    """One model at every length: what each way took."""
    made = cells.get(model, "export-ours", ssm_models.LONGEST)
    rows = []
    gone: dict[str, str] = {}
    for length in (n for n in LENGTHS if n <= longest):
        row: dict[str, Any] = {"model": model, "length": length, "export-ours": made}
        if model == "Mamba-2":
            row["native"] = cells.get(model, "native", length, 1)
        for way in ("eager", "compile", "export-own", "run-own", "run-ours", "ratio"):
            if way in ("run-own", "ratio") and "failed" in row["export-own"]:
                continue  # there is nothing to run
            # What was too much at a length is too much at a greater one.
            row[way] = {"failed": gone[way]} if way in gone else cells.get(model, way, length)
            if "failed" in row[way]:
                gone[way] = row[way]["failed"]
        rows.append(row)
    return rows


def main() -> None:
    """Measure, save and show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--longest", type=int, default=LENGTHS[-1])
    parser.add_argument("--models", nargs="*", default=list(ssm_models.CONFIGS))
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds for one measurement")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--room", type=Path, default=ROOM, help="where measurements are kept")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    options.room.mkdir(parents=True, exist_ok=True)
    cells = Cells(options.room / "cells.json", options.limit)
    parameters = {}
    for name in options.models:
        parameters[name] = ssm_models.save(name, options.room / name)
    rows = [row for name in options.models for row in model_rows(cells, name, options.longest)]
    found = {
        "schema_version": 1,
        "command": "python benchmarks/ssm.py",
        "environment": environment(),
        "threads": THREADS,
        "parameters": parameters,
        "rows": rows,
        "decode": [
            {"model": name, "context": n, **cells.get(name, "decode", n, 1)}
            for name in options.models
            for n in CONTEXTS
            if n <= min(options.longest * 2, _most(name))
        ],
        "prompt": [
            {"model": name, "length": PROMPT, **cells.get(name, "prompt", PROMPT)}
            for name in options.models
            if _most(name) > CACHED and options.longest == LENGTHS[-1]
        ],
    }
    found["claims"] = ssm_report.claims(found)
    write_text(options.output, json.dumps(found, indent=1))
    ssm_report.show_all(found)
    if options.markdown:
        ssm_report.write(found, options.markdown)


def _most(model: str) -> int:
    """The longest context that is followed: models with caches are followed less far."""
    return CONTEXTS[-1] if model.startswith("Mamba") else CACHED


if __name__ == "__main__":
    main()

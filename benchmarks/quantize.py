"""Our post-training quantization beside its peers, in one run: accuracy, latency, time, memory.

    python examples/digits.py
    python benchmarks/quantize.py --markdown docs/benchmarks.md

- The peers, each in an environment of its own with pinned packages (benchmarks/peers/NAME.txt,
  installed under .peers/ when first needed; --setup does only that), start from one fp32 source,
  get the same calibration samples and are judged on the same evaluation samples by this script.
- Accuracy is of three models trained on the digits, three seeds each. Models with random weights
  and random images show latency, size, conversion time and peak memory, never accuracy.
- A conversion that is timed has a process of its own, alone; its export is added to its time.
- Latencies are taken in turns: in every round each file has a block of calls, and a ratio is of
  two blocks of the same round. Figures are medians.
- What is finished is kept in .peers/cases; the same command goes on from there. --fresh forgets.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from peers import install
from quantize_cases import CASES, DIGITS, PIPELINES, QUICK, Case, Pipeline, train
from quantize_report import claims, failures, show_all, write_section
from quantize_run import opened, take_turns
from quantize_source import write_source

from edgekit.drift import compare
from edgekit.errors import EdgekitError
from edgekit.files import write_text
from edgekit.machine import environment, thread_counts
from edgekit.progress import say

#: A conversion that takes longer is stopped, and the table says so.
LIMIT_SECONDS = 180
#: Seconds and rounds of latency for one number of threads.
SECONDS, ROUNDS = 15.0, 30
CHILD = Path(__file__).parent / "peers" / "child.py"
Report = dict[str, dict[str, Any]]


def measure(case: Case, here: tuple[str, ...] = ()) -> dict[str, Any]:
    """All pipelines on one case; peers in ``here`` run in this script's own environment."""
    folder = install.room() / "cases" / case.name
    result = folder / "result.json"
    if result.exists():
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found
    folder.mkdir(parents=True, exist_ok=True)
    say(f"Case {case.name}")
    source = _kept(folder / "source.json", lambda: write_source(case, folder))
    timed = case.trained is None
    groups = [[p] for p in case.pipelines] if timed else _by_peer(case.pipelines)
    report: Report = {}
    with ThreadPoolExecutor(1 if timed else 2) as pool:
        for done in pool.map(lambda group: convert(folder, group, here), groups):
            report |= done
    rows = [row(pipeline, folder, source, report[pipeline.name]) for pipeline in case.pipelines]
    found = {"case": case.name, "family": case.trained[0] if case.trained else None, **source}
    found["results"] = rows
    if timed and len(rows) > 1:
        add_latency(rows, folder)
    write_text(result, json.dumps(found, indent=1))
    return found


def _kept(path: Path, make: Any) -> dict[str, Any]:
    """What ``make`` returns, made once."""
    if not path.exists():
        write_text(path, json.dumps(make()))
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _by_peer(pipelines: Iterable[Pipeline]) -> list[list[Pipeline]]:
    groups: dict[str, list[Pipeline]] = {}
    for pipeline in pipelines:
        groups.setdefault(pipeline.peer, []).append(pipeline)
    return list(groups.values())


def convert(folder: Path, group: list[Pipeline], here: tuple[str, ...]) -> Report:
    """Conversions by one peer, in one process of its own; a failure is a result."""
    report = folder / f"{group[0].file}.report.json"
    if report.exists():
        return dict(json.loads(report.read_text(encoding="utf-8")))
    peer = group[0].peer
    say(f"{folder.name}: {', '.join(p.name for p in group)}")
    request = folder / f"{group[0].file}.request.json"
    jobs = [{"name": p.name, "variant": p.variant, "out": str(folder / p.file)} for p in group]
    work = {"module": peer, "source": str(folder), "jobs": jobs, "report": f"{report}.part"}
    request.write_text(json.dumps(work), encoding="utf-8")
    found: Report = {}
    try:
        python = sys.executable if peer in here else install.python_of(peer)
        limit = LIMIT_SECONDS * len(group)
        # Conversions that are not timed go on side by side, each on one thread.
        alone = {} if len(group) == 1 else {"OMP_NUM_THREADS": "1"}
        reason = _child([python, str(CHILD), str(request)], limit, alone)
    except EdgekitError as error:
        reason = f"{error.what} {error.why}"
    if (part := Path(f"{report}.part")).exists():
        found = json.loads(part.read_text(encoding="utf-8"))
    found = {p.name: found.get(p.name, {"failed": reason}) for p in group}
    write_text(report, json.dumps(found))
    return found


def _child(command: list[str], limit: int, variables: dict[str, str]) -> str:
    """Run a command; why it did not finish, or ''."""
    env = {**os.environ, **variables}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit, env=env
        )
    except subprocess.TimeoutExpired:
        return f"stopped after {limit} s"
    return done.stderr.strip()[-300:] if done.returncode else ""


def row(
    pipeline: Pipeline, folder: Path, source: dict[str, Any], report: dict[str, Any]
) -> dict[str, Any]:
    """One line of results: what the conversion took, and how good the file is."""
    found: dict[str, Any] = {**asdict(pipeline), "status": report.get("failed", "")}
    if found["status"]:
        return found
    artifact = folder / pipeline.file
    export = 0.0
    if pipeline.peer != "ours":
        export = source["export_s" if pipeline.runtime == "inductor" else "onnx_s"]
    found |= {"seconds": report["seconds"] + export, "peak_mb": report["peak_mb"]}
    parts = {artifact, artifact.with_suffix(".bin")} if artifact.suffix == ".xml" else {artifact}
    found["size_mb"] = sum(part.stat().st_size for part in parts) / 1e6
    try:
        return found | judged(artifact, pipeline.runtime, folder)
    except EdgekitError as error:
        return found | {"status": f"{error.what} {error.why}"}


def judged(artifact: Path, runtime: str, folder: Path) -> dict[str, Any]:
    """Distance from the source, and share of correct labels where there are any."""
    expected = np.load(folder / "expected.npy")
    with opened(artifact, runtime, None, folder / "evaluation.npz") as session:
        actual = np.concatenate([next(iter(o.values())) for o in session.outputs()])
    drift = compare([{"y": expected}], [{"y": actual}])
    labels = folder / "labels.npy"
    top1 = float((actual.argmax(1) == np.load(labels)).mean()) if labels.exists() else None
    return {"cosine": drift.cosine, "sqnr_db": min(drift.sqnr_db, 999.0), "top1": top1}


def add_latency(rows: list[dict[str, Any]], folder: Path) -> None:
    """Milliseconds and rounds of every file that works, on one and on all threads."""
    good = {row["name"]: row for row in rows if not row["status"]}
    files = {p.name: (folder / p.file, p.runtime) for p in PIPELINES if p.name in good and p.timed}
    for threads in thread_counts():
        say(f"{folder.name}: latency on {threads} threads")
        taken = take_turns(files, folder / "evaluation.npz", threads, SECONDS, ROUNDS)
        for name, blocks in taken.items():
            good[name].setdefault("latency", {})[str(threads)] = blocks.tolist()


def main(cases: list[Case], here: tuple[str, ...], output: Path, markdown: Path | None) -> bool:
    """Measure, print and write; whether every claim holds."""
    if not DIGITS.is_dir():
        raise EdgekitError(f"{DIGITS} does not exist.", "", "Run: python examples/digits.py")
    peers = sorted({p.peer for case in cases for p in case.pipelines})
    found: dict[str, Any] = {
        "schema_version": 1,
        "command": " ".join(["python", *sys.argv]),
        "environment": environment(),
        "pins": {peer: install.versions(peer) for peer in peers if peer != "ours"},
    }
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, [case.trained for case in cases if case.trained]))
    found["cases"] = [measure(case, here) for case in cases]
    found["claims"] = claims(found["cases"])
    show_all(found)
    failed = failures(found["claims"])
    sys.stdout.write("\n".join(failed or ["Every claim holds."]) + "\n")
    write_text(output, json.dumps(found, indent=1) + "\n")
    if markdown is not None:
        write_section(markdown, found)
    return not failed


def chosen(names: list[str] | None, quick: bool) -> list[Case]:
    """The cases of the command line.

    Raises:
        EdgekitError: a name is not a case's.
    """
    if quick:
        return [QUICK]
    known = {case.name: case for case in CASES}
    for name in names or ():
        if name not in known:
            raise EdgekitError(f"There is no case {name}.", f"There are {', '.join(known)}.")
    return [known[name] for name in names or known]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setup", action="store_true", help="install the peers, and stop")
    parser.add_argument("--quick", action="store_true", help="digits, onnxruntime as it is here")
    parser.add_argument("--fresh", action="store_true", help="forget the results kept so far")
    parser.add_argument("--case", action="append", help="only this one; may be repeated")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quantize.json"))
    parser.add_argument("--markdown", type=Path, help="write the section of this file, too")
    given = parser.parse_args()
    if given.setup:
        for peer in sorted({p.peer for p in PIPELINES}):
            install.python_of(peer)
        sys.exit()
    cases = chosen(given.case, given.quick)
    for case in cases if given.fresh or given.quick else ():
        shutil.rmtree(install.room() / "cases" / case.name, ignore_errors=True)
    holds = main(cases, ("ort",) if given.quick else (), given.output, given.markdown)
    sys.exit(not holds)

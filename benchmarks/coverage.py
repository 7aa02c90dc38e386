"""coverage: which families of vision transformers reach which backend, and why the rest do not.

    python benchmarks/coverage.py                            # every family, resuming the results
    python benchmarks/coverage.py --models '*swin*' --again  # some, anew
    python benchmarks/coverage.py --markdown docs/coverage.md --models none

One small variant of each transformer and hybrid family in timm, and of two in transformers,
with seeded random weights and random inputs: the results prove parity with the source model and
say nothing of accuracy. Each model runs in a process of its own, with a time limit; its result
is saved before the next one starts, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import fnmatch
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coverage_page import COLUMNS, markdown, rows_of

from edgekit import drift, files, packages, table, targets
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.work import Work

RESULTS = Path(__file__).parent / "results" / "coverage.json"
MODELS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
#: The models that must pass in everything, and for every GPU generation.
REQUIRED: list[str] = MODELS["required"]


@dataclass(frozen=True)
class Check:
    """One thing that a model has to do: an artifact of a precision for a target."""

    backend: str
    precision: str
    target: str
    required_only: bool = False

    @property
    def name(self) -> str:
        """As it stands in the results."""
        return f"{self.backend} {self.precision} {self.target}"

    def artifact(self, room: Path) -> Path:
        """Where the artifact is made. An engine takes the ONNX file of the same target."""
        suffix = {"tensorrt": ".plan", "coreml": ".mlpackage"}.get(self.backend, ".onnx")
        return room / f"{self.precision}-{self.target}{suffix}"


CHECKS = (
    Check("onnx", "fp32", "rtx-4090"),
    Check("onnx", "fp16", "rtx-4090"),
    Check("tensorrt", "fp16", "rtx-4090"),
    Check("tensorrt", "fp16", "rtx-3090", required_only=True),
    Check("tensorrt", "fp16", "rtx-5090", required_only=True),
    Check("coreml", "fp16", "iphone-15-pro"),
    Check("int8", "int8", "cpu"),
)


def checks_for(model: str, backends: tuple[str, ...]) -> list[Check]:
    """The checks that a model is put through."""
    wanted = [check for check in CHECKS if check.backend in backends]
    return [check for check in wanted if model in REQUIRED or not check.required_only]


def judge_model(
    name: str, backends: tuple[str, ...], send: Callable[[dict[str, Any]], None]
) -> None:
    """Put one model through its checks; ``send`` gets each result when it is there."""
    with tempfile.TemporaryDirectory() as room:
        with _reported("export", send) as figures:
            work = _work(name, Path(room))
            figures |= {"nodes": len(work.graph.exported.graph.nodes), "calls": len(work.expected)}
        if not figures:
            return
        for check in checks_for(name, backends):
            with _reported(check.name, send) as figures:
                figures |= _run(check, in_precision(work, check.precision), Path(room))


@contextlib.contextmanager
def _reported(name: str, send: Callable[[dict[str, Any]], None]) -> Iterator[dict[str, Any]]:
    """Time a block and send how it ended; whatever it raises is its result."""
    figures: dict[str, Any] = {}
    begin, reason = time.perf_counter(), ""
    try:
        yield figures
    except EdgekitError as error:
        reason = " ".join(f"{error.what} {error.why}".split())
    except Exception as error:  # noqa: BLE001 - every failure is a row of the table
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    seconds = round(time.perf_counter() - begin, 1)
    send({"check": name, "ok": not reason, "reason": reason[:600], "seconds": seconds, **figures})


def _work(name: str, room: Path) -> Work:
    from edgekit.recipe import Recipe
    from edgekit.work import Work

    family, _, rest = name.partition("/")
    arguments: dict[str, Any] = {}
    inputs: tuple[str, ...] = ()
    if family == "transformers":
        (room / "config.json").write_text(
            json.dumps(MODELS["configurations"][rest]), encoding="utf-8"
        )
        rest, inputs = str(room), ("pixel_values:1x3x224x224",)
    rest, _, depth = rest.partition(":")
    if depth:
        arguments["depth"] = int(depth)
    return Work(
        Recipe(
            model=f"{family}/{rest}",
            targets=("cpu",),
            arguments=arguments,
            inputs=inputs,
            random_weights=True,
            random_calibration=True,
            samples=2,
        )
    )


def in_precision(work: Work, precision: str) -> Work:
    """The same work for another precision: model, graph and expected outputs are shared."""
    other = copy.copy(work)
    other.recipe = work.recipe.model_copy(update={"precision": precision})
    return other


def _run(check: Check, work: Work, room: Path) -> dict[str, Any]:
    """Make the check's artifact and compare it where something here can run it."""
    target, out = targets.load(check.target), check.artifact(room)
    if check.backend == "tensorrt":
        artifact = work.convert(_onnx_file(check, work, room), "tensorrt", out, target)
        return {"engine_mb": round(artifact.details["engine_bytes"] / 1e6, 2)}
    quantized = work.quantize() if check.precision == "int8" else None
    graph = work.lower(target, quantized)
    if check.backend == "coreml":
        work.convert(graph, "coreml", out, target)
        return _parity(work, out, "coreml")
    work.convert(graph, "onnx", out, target)
    return _parity(work, out, "onnxruntime")


def _onnx_file(check: Check, work: Work, room: Path) -> Path:
    """The file that the ONNX check verified, if it was made."""
    verified = Check("onnx", check.precision, "rtx-4090").artifact(room)
    if not verified.is_file():
        target = targets.load("rtx-4090")
        work.convert(work.lower(target, None), "onnx", verified, target)
    return verified


def _parity(work: Work, artifact: Path, runtime: str) -> dict[str, Any]:
    """Drift from the source. INT8 is reported only: random weights prove no accuracy.

    Raises:
        EdgekitError: out of tolerance; where it begins is named.
    """
    if work.recipe.precision == "int8":
        found, failure = drift.compare(work.expected, work.run(artifact, runtime)), ""
    else:
        found, _, failure = work.judge(artifact, runtime)
    if failure:
        raise EdgekitError(failure)
    return {"cosine": found.cosine, "max_abs": found.max_abs, "peak": found.peak}


def in_process(name: str, backends: tuple[str, ...], limit: float) -> dict[str, Any]:
    """One model's results, made in a process that is killed at the time limit."""
    command = [sys.executable, __file__, "--one", name, "--only", ",".join(backends)]
    # One thread: on a busy machine a second one mostly waits for the first.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    problem = ""
    with (
        tempfile.TemporaryFile("w+", errors="replace") as answers,
        tempfile.TemporaryFile("w+", errors="replace") as log,
        subprocess.Popen(
            command, stdout=answers, stderr=log, start_new_session=True, env=environment
        ) as process,
    ):
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            problem = f"stopped after {limit:.0f} s"
            os.killpg(process.pid, signal.SIGKILL)
        else:
            log.seek(0)
            problem = f"exit code {code}: {log.read()[-300:]}" if code else ""
        answers.seek(0)
        done = {row.pop("check"): row for row in map(json.loads, answers)}
    exported = done.pop("export", {"ok": False, "reason": problem})
    missing = problem if exported["ok"] else exported["reason"]
    for check in checks_for(name, backends):
        done.setdefault(check.name, {"ok": False, "reason": missing, "seconds": 0.0})
    return done


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--models", default="*", help="a glob over names; 'none' runs nothing")
    parser.add_argument("--only", default=",".join(COLUMNS), help="backends, with commas")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where results are kept")
    parser.add_argument("--again", action="store_true", help="run models that have a result")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds a model")
    parser.add_argument("--markdown", type=Path, help="also write the results as a page")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def _child(name: str, backends: tuple[str, ...]) -> None:
    """Results go to stdout, a JSON object a line; whatever else is printed, to stderr."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def send(row: dict[str, Any]) -> None:
        channel.write(json.dumps(row) + "\n")

    judge_model(name, backends, send)


def main() -> None:
    """Run the models asked for, save each result, and show all of them."""
    given = _arguments()
    asked = tuple(given.only.split(","))
    if given.one:
        return _child(given.one, asked)
    for name in [*REQUIRED, *MODELS["families"]]:
        done = {} if given.again else read(given.json)["models"].get(name, {"checks": {}})["checks"]
        backends = tuple(
            b for b in asked if any(c.name not in done for c in checks_for(name, (b,)))
        )
        if backends and fnmatch.fnmatch(name, given.models):
            show(save(given.json, name, in_process(name, backends, given.limit)))
    results = read(given.json)
    show(results["models"])
    if given.markdown:
        files.write_text(given.markdown, markdown(results))


def read(path: Path) -> dict[str, Any]:
    """The results so far; none if there is no file yet."""
    if not path.is_file():
        return {"schema_version": 1, "models": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def save(path: Path, name: str, checks: dict[str, Any]) -> dict[str, Any]:
    """Add one model's results to the file, where others may have been added; return them."""
    from edgekit.machine import environment

    results = read(path)
    models = results["models"]
    models[name] = {"checks": models.get(name, {"checks": {}})["checks"] | checks}
    ordered = {n: models[n] for n in [*REQUIRED, *MODELS["families"]] if n in models}
    facts = environment()
    facts["versions"] |= packages.versions({"timm": "timm", "transformers": "transformers"})
    results |= {"command": shlex.join(sys.argv), "environment": facts, "models": ordered}
    files.write_text(path, json.dumps(results, indent=1) + "\n")
    return {name: models[name]}


def show(models: dict[str, Any]) -> None:
    """Print the results as a table."""
    columns = ("model", *COLUMNS.values(), "s")
    table.show(table.plain_table("Coverage", columns, rows_of(models)))


if __name__ == "__main__":
    main()

"""TensorRT: an engine from our ONNX file, by ``tensorrt_rtx`` or ``tensorrt``.

``tensorrt_rtx`` builds for any GPU architecture it knows on a machine that has no GPU;
``tensorrt`` builds for the GPU of this machine only. Which one is used is the target's
``runtime``; what they can do is found out from the package itself. Precision is in the graph:
networks are strongly typed and no precision flag is set.

Sizes that vary get the ranges that the ONNX file states (``converters/interface.py``): the engine
takes any in between, and is tuned for the usual ones.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from edgekit import files
from edgekit.converters import Artifact
from edgekit.errors import EdgekitError
from edgekit.progress import say, stage
from edgekit.targets import Target

NAME = "engine.plan"
RUNTIME = "tensorrt"
ACCEPTS = "onnx"
REQUIRES = {"tensorrt_rtx": "tensorrt-rtx"}


def convert(source: Path, out: Path, target: Target) -> Artifact:
    """Build the engine of an ONNX file for a target's GPU; ``out`` is complete or not there.

    Args:
        source: an ONNX file that states the range of every size that varies in its inputs; one
            that states none may have a batch that does.
        out: the engine to write; it is replaced if it exists.
        target: says the package (``runtime``) and the GPU (``compute_capability``).

    Returns:
        The artifact. Its details: tensorrt (version), package, compute_capability,
        build_seconds, engine_bytes, activation_bytes, weight_bytes, build_peak_bytes,
        dims ({name: [least, usual, most]} of the sizes that vary) and warnings.

    Raises:
        EdgekitError: the target has no TensorRT engine of this kind, the package is not
            installed, the ONNX file cannot be read, parsed or built, or the build crashed.
    """
    if target.compute_capability is None or target.runtime not in ("tensorrt_rtx", "tensorrt"):
        raise EdgekitError(
            f"{target.title} takes no TensorRT engine.",
            f"Its runtime is {target.runtime}.",
            f"Its formats are {', '.join(target.formats)}.",
        )
    with files.atomic(out) as room, stage(f"Building a TensorRT engine for {target.name}"):
        request = {
            "package": target.runtime,
            "source": str(source.resolve()),
            "out": str(room.resolve()),
            "capability": target.compute_capability,
        }
        facts = _work(source, request)
    size = facts["engine_bytes"] / 1e6
    say(f"TensorRT {facts['tensorrt']}: {out.name}, {size:.1f} MB in {facts['build_seconds']} s")
    return Artifact("tensorrt", out, facts)


def check(source: Path) -> None:
    """Parse an ONNX file with TensorRT-RTX's parser, and build nothing.

    Raises:
        EdgekitError: nodes are refused (all are listed), or the parser is not installed.
    """
    _work(source, {"package": "tensorrt_rtx", "source": str(source.resolve())})


def _work(source: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Run one request in a process of its own. Returns the facts it answers with."""
    _require(source, request["package"])
    answer: dict[str, Any] = {}
    command = [sys.executable, "-P", "-m", "edgekit.converters.tensorrt_build"]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as log,
        _process([*command, json.dumps(request)], log) as process,
    ):
        for line in process.stdout or ():
            answer = json.loads(line)
            if "phase" in answer:
                say(f"  {answer['phase']}")
        code = process.wait()
        if "errno" in answer:
            raise OSError(answer["errno"], answer["why"])
        if "problem" in answer:
            what, why, fix = answer["problem"]
            raise EdgekitError(f"{source}: {what}", why, fix)
        if code != 0 or "facts" not in answer:
            raise _crash(source, code, log)
    facts: dict[str, Any] = answer["facts"]
    return facts


@contextlib.contextmanager
def _process(command: list[str], log: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the block."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _require(source: Path, package: str) -> None:
    if not source.is_file():
        raise EdgekitError(f"{source} does not exist.", "There is no ONNX file to build from.")
    if importlib.util.find_spec(package) is None:
        raise EdgekitError(
            f"{source}: TensorRT is not installed.",
            f"{sys.executable} has no Python package {package}.",
            f"Run: {sys.executable} -m pip install {REQUIRES.get(package, package)}",
        )


def _crash(source: Path, code: int, log: IO[str]) -> EdgekitError:
    """The error for a build whose process ended without an answer."""
    log.seek(0)
    tail = "".join(log.readlines()[-15:]).strip()
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    fix = "Report the model to edgekit with the log above."
    if code == -signal.SIGKILL:
        fix = "Free memory: a build needs about three times the size of the weights."
    return EdgekitError(
        f"{source}: the TensorRT process crashed ({how}).",
        f"Its log ends with:\n{tail}" if tail else "Its log is empty.",
        fix,
    )

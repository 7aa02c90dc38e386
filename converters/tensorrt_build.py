"""The process in which TensorRT parses and builds: a crash in it is not a crash of edgekit.

``python -m edgekit.converters.tensorrt_build REQUEST`` takes a JSON object with ``package``,
``source`` and, to build and not only parse, ``out`` and ``capability``. It answers on stdout, one
JSON object a line: any number of ``{"phase": name}``, then ``{"facts": {...}}`` or
``{"problem": [what, why, fix]}``. Everything else goes to stderr, its log.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgekit.converters.interface import interface
from edgekit.converters.kit.build import (
    build,
    load_tensorrt,
    make_builder,
    make_log,
    parse,
    shapes_of,
)
from edgekit.converters.kit.cuda import Cuda
from edgekit.converters.kit.problem import Problem
from edgekit.errors import EdgekitError

Send = Callable[[dict[str, Any]], None]


def work(request: Mapping[str, Any], send: Send) -> dict[str, Any]:
    """Parse, or parse and build. Returns the facts for the manifest."""
    trt = load_tensorrt(request["package"])
    log = make_log(trt, lambda text: _log(text))
    source = Path(request["source"])
    taken = _interface(source)
    if request.get("out") is None:
        parse(trt, make_builder(trt, log), source, log)
        return {"tensorrt": trt.__version__, "package": trt.__name__}
    if not hasattr(trt, "ComputeCapability"):
        _require_gpu(trt, request["capability"])
    plan, facts = build(
        trt,
        source,
        log,
        shapes_of(taken["inputs"], taken["dims"]),
        capability=request["capability"],
        report=lambda phase: send({"phase": phase}),
    )
    Path(request["out"]).write_bytes(plan)
    facts["dims"] = taken["dims"]
    facts["build_peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return facts


def _interface(source: Path) -> dict[str, Any]:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return interface(onnx.load(str(source), load_external_data=False))
    except DecodeError as error:
        raise Problem("it cannot be read as ONNX.", str(error)) from error


def _require_gpu(trt: Any, capability: str) -> None:
    """TensorRT proper builds for the GPU it runs on, so that GPU has to be the target's."""
    cuda = Cuda()
    try:
        name, found = cuda.name, cuda.capability
    finally:
        cuda.close()
    if found != capability:
        raise Problem(
            f"{trt.__name__} cannot build for compute capability {capability} here.",
            f"It builds for the GPU of this machine: {name}, {found}.",
            "Build on a machine with the target's GPU.",
        )


def _log(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main() -> None:
    """Answer the request in the first argument."""
    # TensorRT's native code may write to stdout: keep that away from the answers.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")

    try:
        send({"facts": work(json.loads(sys.argv[1]), send)})
    except (Problem, EdgekitError) as problem:
        send({"problem": [problem.what, problem.why, problem.fix]})
    except OSError as error:
        send({"errno": error.errno, "why": str(error)})


if __name__ == "__main__":
    main()

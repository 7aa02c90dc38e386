"""One go: build, check, measure, write result.json."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from .build import build, load_tensorrt, make_log, shapes_of
from .device import device_facts
from .engine import Cuda, Engine, filled
from .files import check_model, digest, load_reference, read_json, write
from .measure import compare, measure, within
from .problem import NoDevice, Problem, say
from .stream import calls, run_stream

if TYPE_CHECKING:
    from .engine import Arrays

SCHEMA_VERSION = 2
NOT_RUN = "built, not run: no CUDA device"


def engine_for(
    folder: Path, kit: dict[str, Any], trt: Any, log: Any, gpu: str | None, options: Any
) -> dict[str, Any]:
    """Make engine.plan, or keep the one that is there. Returns the facts of its build."""
    plan, facts = folder / "engine.plan", folder / "engine.json"
    key = {
        "model_sha256": kit["model"]["sha256"],
        "tensorrt": trt.__version__,
        "package": trt.__name__,
        "compute_capability": options.compute_capability,
        "gpu": gpu,
    }
    if plan.is_file() and facts.is_file() and not options.rebuild:
        held = read_json(facts)
        same = {name: held.get(name) for name in key} == key
        if same and held.get("engine_sha256") == digest([plan]):
            say(f"Using {plan.name}, built in {held['build_seconds']} s before.")
            return dict(held, reused=True)
    say(f"Building with {trt.__name__} {trt.__version__}. This can take minutes.")
    engine, built = build(
        trt,
        folder / kit["model"]["files"][0],
        log,
        shapes_of(kit["inputs"], kit["dims"]),
        capability=options.compute_capability,
        flags=kit["flags"],
        report=lambda phase: say(f"  {phase}"),
    )
    write(plan, engine)
    built.update(key, dims=kit["dims"], engine_sha256=digest([plan]))
    write(facts, built)
    return dict(built, reused=False)


def find_gpu(package: str, capability: str | None) -> dict[str, str] | None:
    """The GPU's name and compute capability; None where there is none and none is needed."""
    try:
        cuda = Cuda()
    except NoDevice:
        if package == "tensorrt_rtx" and capability is not None:
            return None
        raise
    try:
        return {"name": cuda.name, "compute_capability": cuda.capability}
    finally:
        cuda.close()


def run(folder: Path, options: argparse.Namespace) -> int:
    """Build, check, measure, write the result. Returns the exit code."""
    options.result.unlink(missing_ok=True)
    kit = read_json(folder / "kit.json")
    check_model(folder, kit)
    inputs, expected = load_reference(folder, kit)
    trt = load_tensorrt("tensorrt", "tensorrt_rtx")
    gpu = find_gpu(trt.__name__, options.compute_capability)
    log = make_log(trt, say)
    warnings = _version_warnings(kit, trt)
    built = engine_for(folder, kit, trt, log, gpu["name"] if gpu else None, options)
    result = {
        "schema_version": SCHEMA_VERSION,
        "status": NOT_RUN,
        "model_sha256": kit["model"]["sha256"],
        "target": kit["target"]["name"],
        "precision": kit["precision"],
        "device": dict(device_facts(), gpu=gpu),
        "tensorrt": trt.__version__,
        "build": built,
        "warnings": warnings,
        "tolerance": kit["tolerance"],
        "drift": None,
        "timing": None,
    }
    if gpu is not None:
        with Engine(trt, (folder / "engine.plan").read_bytes(), log) as engine:
            result.update(_judged(engine, kit, inputs, expected, options))
    write(options.result, result)
    _summary(result, options.result)
    return 1 if result["status"] == "failed" else 0


def _judged(
    engine: Engine,
    kit: dict[str, Any],
    inputs: Arrays,
    expected: Arrays,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Drift from the reference, what each kind of call takes, and the status."""
    if kit["states"]:
        actual = run_stream(engine, kit, inputs)
        timed = calls(engine, kit, inputs)
    else:
        actual = engine.infer_all(inputs)
        batch = engine.batches[0]
        one = {name: filled(array[:batch], batch) for name, array in inputs.items()}
        timed = iter([("call", one)])
    drift = {name: compare(actual[name], array) for name, array in expected.items()}
    timing = {n: measure(engine, call, options.warmup, options.iterations) for n, call in timed}
    passed = within(drift, kit["tolerance"])
    return {"drift": drift, "timing": timing, "status": "passed" if passed else "failed"}


def _version_warnings(kit: dict[str, Any], trt: Any) -> list[str]:
    """A warning where the kit was made for another TensorRT: it is built all the same."""
    found, wanted = trt.__version__, kit["tensorrt"]
    if trt.__name__ == "tensorrt" and not f"{found}.".startswith(f"{wanted}."):
        text = f"Made for TensorRT {wanted} ({kit['target']['system']}); this is {found}."
        say(f"Warning: {text}")
        return [text]
    return []


def _summary(result: dict[str, Any], path: Path) -> None:
    for name, drift in (result["drift"] or {}).items():
        say(f"{name}: " + "  ".join(f"{key} {value}" for key, value in drift.items()))
    for name, timing in (result["timing"] or {}).items():
        latency = "  ".join(f"{key} {value}" for key, value in timing["latency_ms"].items())
        say(f"Latency of a {name} (ms): {latency}")
        say(f"Throughput of a {name}: {timing['throughput']} samples a second")
    say(f"Status: {result['status']}. Written: {path}")


def main(folder: Path, text: str, arguments: Sequence[str] | None = None) -> int:
    """The command line, for the kit in a folder; ``text`` is its help. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--warmup", type=_count, default=10, help="runs before the timed ones (10)")
    add("--iterations", type=_count, default=100, help="timed runs (100)")
    add("--rebuild", action="store_true", help="build even if engine.plan is up to date")
    add("--result", type=Path, default=folder / "result.json", help="where to write the result")
    add("--compute-capability", help="GPU to build for, e.g. 8.9 (tensorrt_rtx only)")
    try:
        return run(folder, parser.parse_args(arguments))
    except Problem as problem:
        sys.stderr.write(f"Error: {problem}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted: nothing half-written is left.\n")
        return 130


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number

"""One go: build, check, measure, write result.json."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator

from .build import build, load_tensorrt, make_log, shapes_of
from .engine import Engine, filled
from .files import digest, load_reference, write
from .measure import SINGLE_STREAM, Settings, compare, measure, within
from .memory import device_memory
from .problem import Problem, say
from .profile import profile, shares
from .stream import calls, run_stream

if TYPE_CHECKING:
    from .check import Check
    from .engine import Arrays

NOT_RUN = "built, not run: no CUDA device"
#: Samples of the reference that single-stream draws from at most.
SAMPLES = 64


def run(folder: Path, kit: dict[str, Any], options: Any, check: Check) -> int:
    """Build, check, measure, write the result, on a device that fits. Returns the exit code."""
    settings = Settings.of(options)
    for note in check.notes():
        say(f"Note: {note}")
    inputs, expected = load_reference(folder, kit)
    trt = load_tensorrt("tensorrt", "tensorrt_rtx")
    log = make_log(trt, say)
    gpu = check.gpu["name"] if check.gpu is not None else None
    built = engine_for(folder, kit, trt, log, gpu, options)
    result = {
        "schema_version": kit["schema_version"],
        "status": NOT_RUN,
        "model_sha256": kit["model"]["sha256"],
        "target": kit["target"]["name"],
        "precision": kit["precision"],
        "device": check.device,
        "tensorrt": trt.__version__,
        "build": built,
        "warnings": check.notes(),
        "tolerance": kit["tolerance"],
        "drift": None,
        "cold": None,
        "timing": None,
        "device_memory_mb": None,
        "profile": None,
    }
    if check.gpu is not None:
        result["cold"] = _cold_elsewhere()
        with device_memory() as memory, _open(folder, trt, log) as engine:
            result.update(_judged(engine, kit, inputs, expected, settings))
            if options.profile:
                say("Profiling each layer")
                call = _first_call(engine, kit, inputs)
                result["profile"] = profile(trt, engine, call, kit["layers"])
        result["device_memory_mb"] = memory.peak_mb
    write(options.result, result)
    _summary(result, options.result)
    return 1 if result["status"] == "failed" else 0


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
        held = _read(facts)
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


def _read(facts: Path) -> dict[str, Any]:
    """The facts of an engine's build; none where the file is damaged, so that it is built again."""
    try:
        held = json.loads(facts.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _open(folder: Path, trt: Any, log: Any) -> Engine:
    return Engine(trt, (folder / "engine.plan").read_bytes(), log)


def cold_start(folder: Path, kit: dict[str, Any]) -> int:
    """Load the engine and run it once, in a process that has done neither; say what they took.

    ``load_ms`` is from the file to an engine that is ready, with the start of CUDA and TensorRT;
    ``first_ms`` is the first call. Python's own start and imports are not in them.
    """
    inputs, _expected = load_reference(folder, kit)
    trt = load_tensorrt("tensorrt", "tensorrt_rtx")
    log = make_log(trt, lambda text: None)
    start = time.perf_counter()
    with _open(folder, trt, log) as engine:
        loaded = time.perf_counter()
        call = _first_call(engine, kit, inputs)
        ready = time.perf_counter()
        engine.infer(call)
        first = time.perf_counter() - ready
    found = {"load_ms": (loaded - start) * 1e3, "first_ms": first * 1e3}
    say(json.dumps({name: round(ms, 3) for name, ms in found.items()}))
    return 0


def _cold_elsewhere() -> dict[str, float]:
    """The cold start, of a process of its own: this one has warmed up by building."""
    command = [sys.executable, sys.argv[0], "--cold-start"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        why = done.stderr.strip() or f"It ended with {done.returncode}."
        raise Problem("The engine cannot be loaded in a new process.", why, "") from None
    return found


def _first_call(engine: Engine, kit: dict[str, Any], inputs: Arrays) -> Arrays:
    """The inputs of the first kind of call."""
    if kit["states"]:
        return next(calls(engine, kit, inputs))[1]
    return _call(engine, inputs)


def _call(engine: Engine, inputs: Arrays, start: int = 0) -> Arrays:
    """The inputs of one call in the least batch, from a sample on."""
    batch = engine.batches[0]
    return {name: filled(array[start : start + batch], batch) for name, array in inputs.items()}


def _judged(
    engine: Engine,
    kit: dict[str, Any],
    inputs: Arrays,
    expected: Arrays,
    settings: Settings,
) -> dict[str, Any]:
    """Drift from the reference, what each kind of call takes, and the status."""
    say("Comparing with the reference")
    streams = bool(kit["states"])
    actual = run_stream(engine, kit, inputs) if streams else engine.infer_all(inputs)
    drift = {name: compare(actual[name], array) for name, array in expected.items()}
    timing = {}
    for name, given in _timed(engine, kit, inputs, settings):
        say(f"Timing {'queries' if settings.mode == SINGLE_STREAM else f'a {name}'}")
        timing[name] = measure(engine, given, settings)
    passed = within(drift, kit["tolerance"])
    return {"drift": drift, "timing": timing, "status": "passed" if passed else "failed"}


def _timed(
    engine: Engine, kit: dict[str, Any], inputs: Arrays, settings: Settings
) -> Iterator[tuple[str, list[Arrays]]]:
    """The kinds of call that are timed, each with its calls."""
    if kit["states"]:
        for name, call in calls(engine, kit, inputs):
            yield name, [call]
    else:
        yield "call", _queries(engine, inputs, settings)


def _queries(engine: Engine, inputs: Arrays, settings: Settings) -> list[Arrays]:
    """The calls that are timed: one that is repeated, or the queries that are drawn from."""
    if settings.mode != SINGLE_STREAM:
        return [_call(engine, inputs)]
    count, batch = len(next(iter(inputs.values()))), engine.batches[0]
    return [_call(engine, inputs, at) for at in range(0, min(count, SAMPLES * batch), batch)]


def _summary(result: dict[str, Any], path: Path) -> None:
    for name, drift in (result["drift"] or {}).items():
        say(f"{name}: " + "  ".join(f"{key} {value}" for key, value in drift.items()))
    if result["cold"]:
        cold = result["cold"]
        say(f"Cold start: {cold['load_ms']} ms to load, {cold['first_ms']} ms for the first call")
    for name, timing in (result["timing"] or {}).items():
        _say_timing(name, timing)
    if result["device_memory_mb"] is not None:
        say(f"Memory of the GPU: {result['device_memory_mb']:.0f} MiB at its peak")
    if result["profile"]:
        for key in ("class", "module"):
            parts = shares(result["profile"]["layers"], key)[:8]
            say(f"By {key}: " + ", ".join(f"{name or 'other'} {part:.0%}" for name, part in parts))
    say(f"Status: {result['status']}. Written: {path}")


def _say_timing(name: str, timing: dict[str, Any]) -> None:
    latency = "  ".join(f"{key} {value}" for key, value in timing["latency_ms"].items())
    say(f"Latency of a {name} (ms): {latency}")
    if timing["device_ms"]:
        told = "  ".join(f"{key} {value}" for key, value in timing["device_ms"].items())
        say(f"Of it on the GPU (ms): {told}")
    say(f"Throughput of a {name}: {timing['throughput']} samples a second")
    energy = timing["energy"]
    if energy["meter"]:
        mj = energy["joules_per_inference"] * 1e3
        say(f"Energy of a sample: {mj:.3g} mJ at {energy['watts']:.3g} W ({energy['meter']})")
    else:
        say(f"Energy: {energy['why']}")
    for doubt in timing["doubts"]:
        say(f"Doubtful: {doubt}")

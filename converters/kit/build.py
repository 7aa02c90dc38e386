"""Parse ONNX and build an engine, with `tensorrt` 8.5 to 11 or `tensorrt_rtx`."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import time
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence, Tuple

from .problem import Problem

#: The builder flag that is no precision: weights may be taken as sparse where they are so, 2:4.
SPARSE = "SPARSE_WEIGHTS"
#: Least, usual and greatest shape of an input.
Shapes = Tuple[Sequence[int], Sequence[int], Sequence[int]]


def load_tensorrt(*packages: str) -> Any:
    """The first of these Python packages that is installed."""
    for package in packages:
        if importlib.util.find_spec(package) is not None:
            return importlib.import_module(package)
    raise Problem(
        f"No Python module named {' or '.join(packages)} was found.",
        f"{sys.executable} cannot import TensorRT.",
        "On a Jetson: sudo apt install nvidia-jetpack, and run this with /usr/bin/python3.",
    )


def make_log(trt: Any, echo: Callable[[str], None]) -> Any:
    """A TensorRT logger that keeps its messages and echoes warnings and errors."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[str, str]] = []

        def log(self, severity: Any, text: str) -> None:
            if severity.name == "VERBOSE":
                return
            self.messages.append((severity.name, text))
            if severity.name != "INFO":
                echo(f"TensorRT {severity.name.lower()}: {text}")

        def texts(self, *severities: str) -> list[str]:
            found = [text for severity, text in self.messages if severity in severities]
            return list(dict.fromkeys(found))

    return Log()


def make_monitor(trt: Any, report: Callable[[str], None]) -> Any:
    """A TensorRT progress monitor that reports the outer phases, or None before TensorRT 10."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.top: list[str] = []

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.top.append(name)
            if parent is None or parent in self.top:
                report(name)

        def step_complete(self, name: str, step: int) -> bool:
            return True

        def phase_finish(self, name: str) -> None:
            pass

    return Monitor()


def make_builder(trt: Any, log: Any) -> Any:
    """A builder. TensorRT proper (not RTX) has none without a GPU."""
    try:
        return trt.Builder(log)
    except TypeError as error:
        why = "\n".join(log.texts("ERROR", "INTERNAL_ERROR")) or str(error)
        raise Problem(f"{trt.__name__} cannot start.", why, "It needs an NVIDIA GPU.") from error


def strongly_typed(trt: Any) -> bool:
    """Whether this TensorRT takes precision from the graph alone (10 and later, RTX)."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def parse(trt: Any, builder: Any, onnx: Path, log: Any) -> tuple[Any, Any]:
    """Parse an ONNX file.

    Returns:
        (network, parser); keep both alive until the engine is built.

    Raises:
        Problem: nodes that TensorRT refuses; all of them are listed with their names.
    """
    flags = trt.NetworkDefinitionCreationFlag
    kind = flags.STRONGLY_TYPED if strongly_typed(trt) else flags.EXPLICIT_BATCH
    network = builder.create_network(1 << int(kind))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        errors = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
        raise Problem(
            f"TensorRT {trt.__version__} cannot parse {onnx.name}: {len(errors)} error(s).",
            "\n".join(errors or log.texts("ERROR", "INTERNAL_ERROR")),
            "Replace these operators before the export.",
        )
    return network, parser


def _parser_error(error: Any) -> str:
    if not hasattr(error, "node_name"):  # before TensorRT 8.6
        return f"node {error.node()}: {error.desc()}"
    code = str(error.code()).rsplit(".", 1)[-1]
    return f"{error.node_operator()} node {error.node_name()!r}: {error.desc()} ({code})"


def build(
    trt: Any,
    onnx: Path,
    log: Any,
    shapes: Mapping[str, Shapes],
    capability: str | None = None,
    flags: Sequence[str] = (),
    report: Callable[[str], None] = lambda phase: None,
) -> tuple[Any, dict[str, Any]]:
    """Build an engine.

    Args:
        shapes: of the inputs with a size that varies, by name.
        capability: the GPU's compute capability such as "8.9", where TensorRT lets it be
            chosen (RTX); else the GPU of this machine.
        flags: builder flags: SPARSE, and those that a TensorRT without strong typing needs for
            the graph's precisions ("FP16", "INT8"), which others do not use.
        report: is told each phase's name.

    Returns:
        (the serialized engine, facts: tensorrt, build_seconds, engine_bytes, ...)
    """
    builder = make_builder(trt, log)
    report("Parsing ONNX")
    network, _parser = parse(trt, builder, onnx, log)
    config = builder.create_builder_config()
    if capability is not None and hasattr(config, "set_compute_capability"):
        _set_capability(trt, config, capability)
    typed = strongly_typed(trt)
    _set_flags(trt, config, [flag for flag in flags if flag == SPARSE or not typed])
    _set_profile(builder, network, config, shapes)
    # The names of the ONNX nodes in each kernel, for a profile by layer; no kernel differs.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    monitor = make_monitor(trt, report)
    if monitor is not None:
        config.progress_monitor = monitor
    started = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - started
    if plan is None:
        raise Problem(
            f"TensorRT {trt.__version__} cannot build {onnx.name}.",
            "\n".join(log.texts("ERROR", "INTERNAL_ERROR")),
            "The message names the operator; a precision it supports or a rewrite is needed.",
        )
    facts = {
        "tensorrt": trt.__version__,
        "package": trt.__name__,
        "compute_capability": capability,
        "build_seconds": round(seconds, 3),
        "engine_bytes": int(plan.nbytes),
        "warnings": log.texts("WARNING"),
    }
    facts.update(_memory(log))
    return plan, facts


def _set_capability(trt: Any, config: Any, wanted: str) -> None:
    known = [name for name in dir(trt.ComputeCapability) if re.match(r"SM\d+$", name)]
    name = "SM" + wanted.replace(".", "")
    if name not in known:
        readable = sorted(f"{k[2:-1]}.{k[-1]}" for k in known)
        raise Problem(
            f"{trt.__name__} {trt.__version__} cannot build for compute capability {wanted}.",
            f"It builds for {', '.join(readable)}.",
            "Build on the device itself with the on-device kit (edgekit's Jetson targets).",
        )
    value = getattr(trt.ComputeCapability, name)
    config.num_compute_capabilities = 1
    config.set_compute_capability(value, 0)
    if config.num_compute_capabilities != 1 or config.get_compute_capability(0) != value:
        raise _refused(trt, f"compute capability {wanted}")


def _set_flags(trt: Any, config: Any, flags: Sequence[str]) -> None:
    for name in flags:
        flag = getattr(trt.BuilderFlag, name)
        config.set_flag(flag)
        if not config.get_flag(flag):
            raise _refused(trt, f"builder flag {name}")


def shapes_of(
    inputs: Sequence[Mapping[str, Any]], dims: Mapping[str, Sequence[int]]
) -> dict[str, Shapes]:
    """The shapes of the inputs with a size that varies: one written as its name, as in kit.json."""
    found: dict[str, Shapes] = {}
    for spec in inputs:
        if any(isinstance(size, str) for size in spec["shape"]):
            bounds = [dims[s] if isinstance(s, str) else (s, s, s) for s in spec["shape"]]
            least, usual, most = ([bound[k] for bound in bounds] for k in range(3))
            found[spec["name"]] = (least, usual, most)
    return found


def _set_profile(builder: Any, network: Any, config: Any, shapes: Mapping[str, Shapes]) -> None:
    """Bound every size that varies."""
    profile, dynamic = builder.create_optimization_profile(), False
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        if -1 not in tuple(tensor.shape):
            continue
        dynamic = True
        if tensor.name not in shapes:
            raise Problem(
                f"Input {tensor.name!r} has shape {tuple(tensor.shape)}, of no known range.",
                "TensorRT builds for a least, a usual and a greatest shape.",
                "Export the model again with ranges, or with fixed sizes.",
            )
        wanted = [tuple(shape) for shape in shapes[tensor.name]]
        profile.set_shape(tensor.name, *wanted)
        if [tuple(shape) for shape in profile.get_shape(tensor.name)] != wanted:
            raise Problem(f"TensorRT refused the shapes {wanted} for input {tensor.name!r}.")
    if dynamic and config.add_optimization_profile(profile) < 0:
        raise Problem(f"TensorRT refused the optimization profile {dict(shapes)}.")


def _refused(trt: Any, setting: str) -> Problem:
    return Problem(
        f"{trt.__name__} {trt.__version__} refused {setting}.",
        "The setting read back is not the one that was set.",
    )


def _memory(log: Any) -> dict[str, int]:
    """Bytes that TensorRT's log says the engine needs."""
    lines = "\n".join(log.texts("INFO"))
    found = {
        "activation_bytes": re.search(r"Total Activation Memory: (\d+)", lines),
        "weight_bytes": re.search(r"Total Weights Memory: (\d+)", lines),
    }
    return {key: int(match.group(1)) for key, match in found.items() if match}

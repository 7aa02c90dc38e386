"""Layer times: where ONNX Runtime spends its time, by the modules of the user's code."""

from __future__ import annotations

import ast
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.converters.onnx import MODULE_PATH

if TYPE_CHECKING:
    from edgekit.targets.runtimes import Arrays

CALLS, WARMUP = 12, 3


def layer_times(artifact: Path, inputs: Arrays, threads: int) -> dict[str, float]:
    """Median milliseconds of each module in one call, from ONNX Runtime's own profiler.

    A fused kernel counts for the module whose value it gives; what gives no value of the file
    (a reordered copy, a quantized input) counts for the kernel that reads it. What belongs to
    no module below the model counts for ``''``.
    """
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        kernels, events = _profile(artifact, inputs, threads, Path(folder))
    modules = _modules(onnx.load(str(artifact), load_external_data=False).graph.node)
    homes = _homes(kernels, modules)
    calls: dict[str, dict[int, float]] = {}
    for call, kernel, microseconds in events:
        by_call = calls.setdefault(homes.get(kernel, ""), {})
        by_call[call] = by_call.get(call, 0.0) + microseconds / 1e3
    return {module: _median(list(by_call.values())) for module, by_call in calls.items()}


def _profile(
    artifact: Path, inputs: Arrays, threads: int, folder: Path
) -> tuple[Sequence[Any], list[tuple[int, str, float]]]:
    """The nodes that are run, in order, and (call, node, microseconds) of calls after warm-up."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", "weights.bin"
    )
    session = onnxruntime.InferenceSession(
        str(artifact), options, providers=["CPUExecutionProvider"]
    )
    for _ in range(WARMUP + CALLS):
        session.run(None, inputs)
    trace = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    optimized = onnx.load(str(folder / "optimized.onnx"), load_external_data=False)
    ends = sorted(e["ts"] + e["dur"] for e in trace if e.get("name") == "model_run")
    events = []
    for event in trace:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            call = sum(end <= event["ts"] for end in ends)
            if call >= WARMUP:
                events.append((call, event["name"].removesuffix("_kernel_time"), event["dur"]))
    return optimized.graph.node, events


def _modules(nodes: Sequence[Any]) -> dict[str, str]:
    """The module that gives each value of the file."""
    found = {}
    for node in nodes:
        notes = {note.key: note.value for note in node.metadata_props}
        scopes = ast.literal_eval(notes[MODULE_PATH]) if MODULE_PATH in notes else ["", ""]
        found.update(dict.fromkeys(node.output, scopes[-2] if len(scopes) > 1 else ""))
    return found


def _homes(kernels: Sequence[Any], modules: dict[str, str]) -> dict[str, str]:
    """The module of each kernel that is run, by its name."""
    readers: dict[str, Any] = {}
    for kernel in kernels:
        for value in kernel.input:
            readers.setdefault(value, kernel)
    homes: dict[str, str] = {}
    for kernel in reversed(kernels):
        known = [modules[value] for value in kernel.output if value in modules]
        read_by = [readers[value].name for value in kernel.output if value in readers]
        inherited = [homes[name] for name in read_by if name in homes]
        homes[kernel.name] = next(iter([*known, *inherited]), "")
    return homes


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]

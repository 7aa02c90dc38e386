"""ONNX Runtime's notes: which are of a call's kernels, and what they cost."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.errors import EdgekitError
from edgekit.find import find
from edgekit.profiling import onnxruntime as profiler
from edgekit.profiling import waiting
from edgekit.profiling.onnxruntime import Kernel, calls_of

runtime = find("runtimes", "onnxruntime")


def kernel(name: str, operator: str, start: int, duration: int) -> dict[str, Any]:
    notes = {"cat": "Node", "ts": start, "dur": duration, "args": {"op_name": operator}}
    return {**notes, "name": f"{name}_kernel_time"}


def run(start: int, duration: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": duration, "args": {}}


def test_what_a_loop_runs_is_part_of_it():
    notes = [
        run(100, 60),
        kernel("first", "Conv", 101, 4),
        kernel("loop", "Scan", 106, 40),
        kernel("body", "Exp", 106, 2),
        {"cat": "Session", "name": "SequentialExecutor::Execute", "ts": 106, "dur": 9, "args": {}},
        kernel("body", "Exp", 120, 2),
        kernel("last", "Add", 146, 0),
        kernel("elsewhere", "Add", 90, 3),
    ]
    (call,) = calls_of(notes)
    assert call.microseconds == 60
    assert call.notes == 5
    assert call.kernels == (
        Kernel("first", "Conv", 4, 0),
        Kernel("loop", "Scan", 40, 2),
        Kernel("last", "Add", 0, 0),
    )


def test_calls_are_told_apart():
    notes = [kernel("b", "Add", 31, 2), run(30, 9), run(10, 9), kernel("a", "Add", 11, 2)]
    assert [call.kernels[0].name for call in calls_of(notes)] == ["a", "b"]


@pytest.fixture
def looped(tmp_path: Path) -> Path:
    """y, the sum of the rows of x, by a Scan; and two nodes that have no name."""
    body = helper.make_graph(
        [helper.make_node("Add", ["h", "row"], ["h_next"], "step")],
        "body",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in ("h", "row")],
        [helper.make_tensor_value_info("h_next", TensorProto.FLOAT, [4])],
    )
    nodes = [
        helper.make_node("Scan", ["start", "x"], ["sum"], "loop", body=body, num_scan_inputs=1),
        helper.make_node("Exp", ["sum"], ["e"]),
        helper.make_node("Exp", ["e"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["length", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [helper.make_tensor("start", TensorProto.FLOAT, [4], [0.0] * 4)],
    )
    path = tmp_path / "looped.onnx"
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def test_a_loop_is_one_layer_and_leaves_no_files(looped):
    found = runtime.layers(looped, {"x": np.zeros((50, 4), np.float32)}, 1)
    assert [layer.operator for layer in found] == ["Scan", "Exp", "Exp"]
    assert [layer.kind for layer in found] == ["scan", "elementwise", "elementwise"]
    assert len({layer.name for layer in found}) == 3  # ONNX Runtime numbers the nameless
    assert all(layer.milliseconds >= 0 for layer in found)
    assert list(looped.parent.iterdir()) == [looped]


def test_a_loop_gets_what_the_others_leave(looped, monkeypatch):
    """Not the time in which its turns were noted; of the others, the quickest call counts."""
    kernels = [
        (Kernel("loop", "Scan", 900, 100), Kernel("Exp_1", "Exp", 10, 0)),
        (Kernel("loop", "Scan", 800, 100), Kernel("Exp_1", "Exp", 9, 0)),
    ]
    kernels = [(*each, Kernel("Exp_2", "Exp", 3, 0)) for each in kernels]
    calls = [profiler.Call(1000, each, 103) for each in kernels]

    def run(inputs, open_session, folder):
        onnx.save(onnx.load(looped), folder / "optimized.onnx")
        return [100e-6, 120e-6], [1200e-6, 1100e-6], calls

    monkeypatch.setattr(profiler, "_run", run)
    found = profiler.layers(looped, {}, lambda options: None)
    # 3 microseconds are those of the clock.
    times = {layer.name: pytest.approx(layer.milliseconds) for layer in found}
    assert times == {"loop": 0.094, "Exp_1": 0.006, "Exp_2": 0}
    assert (found.whole, found.profiled) == pytest.approx((0.1, 1.1))


def test_a_call_too_long_to_be_noted_is_an_error(looped, monkeypatch):
    monkeypatch.setattr(profiler, "calls_of", lambda notes: [])
    with pytest.raises(EdgekitError, match="too long to be profiled"):
        runtime.layers(looped, {"x": np.zeros((5, 4), np.float32)}, 1)


def test_two_calls_do_where_noting_takes_long(looped, monkeypatch):
    monkeypatch.setattr(profiler, "_LOST", -1e9)
    runs = []
    real = profiler._seconds
    monkeypatch.setattr(profiler, "_seconds", lambda call: runs.append(1) or real(call))
    found = runtime.layers(looped, {"x": np.zeros((5, 4), np.float32)}, 1)
    assert len(runs) == 4
    assert len(found) == 3


def test_a_process_of_its_own_that_waits_for_each_kernel(looped, monkeypatch):
    """The CPU's provider, through what a GPU's goes through."""
    monkeypatch.setattr(waiting, "_whole", lambda *_: 0.25)
    found = waiting.layers("onnxruntime", looped, {"x": np.zeros((5, 4), np.float32)}, 1)
    assert [layer.kind for layer in found] == ["scan", "elementwise", "elementwise"]
    assert found.whole == 0.25
    assert found.profiled > 0


def test_that_process_is_told_to_wait(looped, monkeypatch):
    asked = {}

    def run(command, env, **_):
        asked.update(env)
        Path(command[-1]).write_text(json.dumps({"layers": [], "profiled": 1.0}), encoding="utf-8")
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(waiting.subprocess, "run", run)
    monkeypatch.setattr(waiting, "_whole", lambda *_: 0.25)
    waiting.layers("onnxruntime", looped, {}, None)
    assert asked["CUDA_LAUNCH_BLOCKING"] == "1"


def test_why_that_process_failed_is_said(tmp_path):
    with pytest.raises(EdgekitError, match="cannot be profiled in onnxruntime") as caught:
        waiting.layers("onnxruntime", tmp_path / "missing.onnx", {}, 1)
    assert "ONNX Runtime cannot load" in caught.value.why
    assert sys.executable not in caught.value.why

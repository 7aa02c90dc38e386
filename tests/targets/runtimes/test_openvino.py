"""The OpenVINO runtime: the graph as it is written, and nothing that was not asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import Session, doctor, packages
from edgekit.errors import EdgekitError
from edgekit.find import find
from edgekit.model import Dim, Input, State
from edgekit.targets.runtimes import runtime_for

openvino = pytest.importorskip("openvino")
runtime = find("runtimes", "openvino")
onnxruntime = find("runtimes", "onnxruntime")


def saved(path: Path, nodes: list[Any], batch: int | str, **constants: Any) -> Path:
    """An ONNX file from x [batch, 64] to y."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, None])],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def product(path: Path, batch: int | str = 2) -> Path:
    """y = gelu(x w) v."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gelu", ["h"], ["g"]),
        helper.make_node("MatMul", ["g", "v"], ["y"]),
    ]
    w, v = random.standard_normal((2, 64, 64)).astype(np.float32)
    return saved(path, nodes, batch, w=w, v=v)


def eight_bit_weight(path: Path) -> Path:
    """y = x w, w of 8 bits, x left in float."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=1),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    levels = random.integers(-127, 128, (64, 64)).astype(np.int8)
    scales = random.uniform(0.01, 0.02, 64).astype(np.float32)
    return saved(path, nodes, 2, w=levels, s=scales, z=np.zeros(64, np.int8))


def eight_bit(path: Path) -> Path:
    """y = q(x) w in 8 bits: with these scales every sum is exact in float32."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["e"]),
        helper.make_node("DequantizeLinear", ["w", "t", "u"], ["d"], axis=1),
        helper.make_node("MatMul", ["e", "d"], ["y"]),
    ]
    constants = {
        "w": random.integers(-127, 128, (64, 48)).astype(np.int8),
        "s": np.float32(2**-5),
        "z": np.int8(0),
        "t": np.full(48, 2**-7, np.float32),
        "u": np.zeros(48, np.int8),
    }
    return saved(path, nodes, 2, **constants)


def batch_of(count: int) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.random.default_rng(1).standard_normal((count, 64)).astype(np.float32)}


def outputs(opened: Any, inputs: dict[str, np.ndarray[Any, Any]]) -> Any:
    with opened as session:
        return session.infer(inputs)["y"]


def test_float_stays_float32(tmp_path):
    """bfloat16, its own choice on many CPUs, is off by a hundred times the tolerance here."""
    path, inputs = product(tmp_path / "model.onnx"), batch_of(2)
    expected = outputs(onnxruntime.open(path), inputs)
    found = outputs(runtime.open(path, 1), inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_activations_of_8_bit_weights_stay_float(tmp_path):
    path, inputs = eight_bit_weight(tmp_path / "model.onnx"), batch_of(2)
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    expected = inputs["x"].astype(np.float64) @ (stored["w"] * stored["s"].astype(np.float64))
    found = outputs(runtime.open(path, 1), inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_eight_bits_are_the_same_numbers_as_in_onnx_runtime(tmp_path):
    path, inputs = eight_bit(tmp_path / "model.onnx"), batch_of(2)
    found = outputs(runtime.open(path, 1), inputs)
    np.testing.assert_array_equal(found, outputs(onnxruntime.open(path), inputs))


def test_an_output_keeps_its_name_where_it_is_another_value_too(tmp_path):
    """A reshape to the same shape is dropped, and its result then has two names."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["another"]),
        helper.make_node("Reshape", ["another", "shape"], ["y"]),
    ]
    w, b = np.eye(64, dtype=np.float32), np.ones(64, np.float32)
    path = saved(tmp_path / "m.onnx", nodes, 2, w=w, b=b, shape=np.array([2, 64]))
    with runtime.open(path) as opened:
        found = opened.infer(batch_of(2))
    assert list(found) == ["y"]
    np.testing.assert_array_equal(found["y"], batch_of(2)["x"] + 1)


def test_a_batch_is_fixed_or_any(tmp_path):
    with runtime.open(product(tmp_path / "fixed.onnx", 2), None) as fixed:
        assert fixed.batch == 2
    with runtime.open(product(tmp_path / "any.onnx", "batch"), None) as free:
        assert free.batch is None
        first, second = free.infer(batch_of(1))["y"], free.infer(batch_of(3))["y"]
    assert (len(first), len(second)) == (1, 3)
    np.testing.assert_allclose(
        second[:1], outputs(runtime.open(tmp_path / "any.onnx"), batch_of(1))
    )


def test_trace_has_every_value_by_name(tmp_path):
    path, inputs = product(tmp_path / "model.onnx"), batch_of(2)
    found, expected = runtime.trace(path, inputs), onnxruntime.trace(path, inputs)
    assert set(found) == set(expected) == {"h", "g", "y"}
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"y": np.zeros((2, 64), np.float32)},
        {"x": np.zeros((2, 64))},
        {"x": np.zeros((2, 63), np.float32)},
        {"x": np.zeros((3, 64), np.float32)},
    ],
    ids=["none", "name", "dtype", "width", "batch"],
)
def test_inputs_that_do_not_fit_are_refused(tmp_path, inputs):
    """OpenVINO alone takes none (it uses the last call's) and any type (it casts)."""
    with runtime.open(product(tmp_path / "model.onnx", 2), 1) as session:
        session.infer(batch_of(2))
        with pytest.raises(EdgekitError, match="OpenVINO cannot run the model"):
            session.infer(inputs)


@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_a_file_that_is_no_model_is_named(tmp_path, content):
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EdgekitError, match=r"OpenVINO cannot load .*broken\.onnx"):
        runtime.open(path, 1)


def test_without_the_package_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "missing", lambda requires: list(requires.values()))
    assert runtime.unavailable() == runtime.untimed() == "openvino is not installed"
    with pytest.raises(EdgekitError) as caught:
        runtime.open(product(tmp_path / "model.onnx"), 1)
    assert "pip install openvino" in caught.value.fix


@pytest.mark.parametrize(
    ("own", "format", "found"),
    [
        ("openvino", "onnx", "openvino"),
        ("onnxruntime", "onnx", "onnxruntime"),
        ("tensorrt_rtx", "onnx", "onnxruntime"),
        ("tensorrt_rtx", "tensorrt", "tensorrt"),
        ("tensorrt", "on_device", None),
        ("coreml", "coreml", "coreml"),
    ],
)
def test_a_targets_own_runtime_proves_what_it_opens(own, format, found):
    assert runtime_for(own, format) == found


def test_the_doctor_knows_it():
    found = doctor.doctor()
    able = {ability.target: ability for ability in found.abilities}
    assert "openvino" in found.installed
    assert able["cpu-openvino"] == doctor.Ability("cpu-openvino", "", "", "")


def test_a_bundle_for_it_is_proven_and_timed_in_it(tmp_path, digits_request, edgekit):
    out = tmp_path / "bundle"
    built = edgekit(*digits_request, "-t", "cpu-openvino", "-o", out)
    assert built.code == 0, built.err
    rows = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["rows"]
    assert [row["status"] for row in rows] == ["verified"]
    assert [row["latency"][0]["runtime"] for row in rows] == ["openvino"]
    timed = edgekit("bench", out, "--iterations", "10", "--seconds", "0.01", "--json")
    results = json.loads(timed.out)["results"]
    assert [result["runtime"] for result in results] == ["openvino"]
    assert edgekit("verify", out).code == 0


#: Running sums of frames (1, length, 2).
STREAM = """
<ir_version: 9, opset_import: ["" : 20]>
sums (float[1, length, 2] x, float[1, 1, 2] sum_0) => (float[1, length, 2] y,
  float[1, 1, 2] sum_0_next) {
  axis = Constant <value_int = 1> ()
  start = Constant <value_ints = [-1]> ()
  end = Constant <value_ints = [9223372036854775807]> ()
  axes = Constant <value_ints = [1]> ()
  within = CumSum (x, axis)
  y = Add (within, sum_0)
  sum_0_next = Slice (y, start, end, axes)
}
"""


def stream(path: Path) -> Path:
    model = onnx.parser.parse_model(STREAM)
    model.metadata_props.add(key="edgekit.dims", value=json.dumps({"length": [1, 3, 4]}))
    onnx.save(model, path)
    return path


def test_a_stream_says_what_it_carries(tmp_path):
    x = np.arange(20, dtype=np.float32).reshape(1, 10, 2)
    opened = runtime.open(stream(tmp_path / "stream.onnx"))
    assert opened.inputs == (Input("x", (1, Dim("length", 1, 3, 4), 2)),)
    assert opened.states == (State("sum_0", (1, 1, 2)),)
    with Session.of(opened, "stream") as session:
        sums = np.concatenate([each["y"] for each in session.feed(x)], 1)
    np.testing.assert_array_equal(sums, x.cumsum(1))


def test_a_state_that_does_not_fit_is_named(tmp_path):
    with runtime.open(stream(tmp_path / "stream.onnx")) as opened:
        x = np.zeros((1, 3, 2), np.float32)
        with pytest.raises(EdgekitError, match=r"\nsum_0 is \[1, 1, 3\], not \[1,1,2\]$"):
            opened.infer({"x": x, "sum_0": np.zeros((1, 1, 3), np.float32)})


def test_a_model_that_is_no_stream_carries_nothing(tmp_path):
    with runtime.open(product(tmp_path / "model.onnx")) as opened:
        assert (opened.inputs, opened.states) == ((), ())

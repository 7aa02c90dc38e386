"""TensorRT: real engines from small ONNX files, and every way a build can end."""

import errno

import numpy as np
import onnx
import psutil
import pytest
from onnx import helper, numpy_helper

from edgekit import files, targets
from edgekit.converters import tensorrt
from edgekit.converters.kit.cuda import cuda_available
from edgekit.errors import EdgekitError
from edgekit.targets.runtimes import tensorrt as runtime

pytest.importorskip("tensorrt_rtx")

TWO_LAYERS = """
<ir_version: 10, opset_import: ["" : 20]>
tiny (float16[{batch}, 16, {width}] x) => (float16[{batch}, 16, {width}] y) {{
    h = Relu(x)
    a = Cast<to = 1>(h)
    s = Softmax<axis = -1>(a)
    y = Cast<to = 10>(s)
}}
"""
REFUSED = """
<ir_version: 10, opset_import: ["" : 20]>
bad (float[4, 4] x) => (float y, float z) {
    [first] y = Det(x)
    h = Relu(x)
    [second] z = Det(h)
}
"""


def save(path, text):
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.fixture
def source(tmp_path):
    return save(tmp_path / "model.onnx", TWO_LAYERS.format(batch=1, width=32))


@pytest.fixture
def target():
    return targets.load("rtx-4090")


def only_source_is_left(source):
    return [path.name for path in source.parent.iterdir()] == [source.name]


def save_int8_linear(path):
    """x -> Q/DQ -> MatMul with int8 weights (per channel) -> Add of a float bias."""
    rng = np.random.default_rng(0)
    tensors = {
        "sx": np.array(0.02, np.float16),
        "zx": np.array(0, np.int8),
        "w": rng.integers(-127, 128, (32, 64)).astype(np.int8),
        "sw": np.full(64, 0.01, np.float16),
        "zw": np.zeros(64, np.int8),
        "b": np.ones(64, np.float16),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    half = onnx.TensorProto.FLOAT16
    graph = helper.make_graph(
        nodes,
        "int8",
        [helper.make_tensor_value_info("x", half, [1, 8, 32])],
        [helper.make_tensor_value_info("y", half, [1, 8, 64])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.mark.parametrize("name", ["rtx-3060", "rtx-4090", "rtx-5090"])
def test_builds_for_each_architecture(source, name):
    target = targets.load(name)
    artifact = tensorrt.convert(source, source.with_suffix(".plan"), target)
    details = artifact.details
    assert artifact.path.read_bytes().startswith(runtime.RTX_MAGIC)
    assert artifact.path.stat().st_size == details["engine_bytes"]
    assert details["compute_capability"] == target.compute_capability
    assert details["package"] == "tensorrt_rtx"
    assert {"activation_bytes", "weight_bytes"} <= set(details)
    assert details["build_seconds"] > 0
    assert details["dims"] == {}


def test_architectures_give_different_engines(source):
    plans = [
        tensorrt.convert(source, source.with_name(f"{name}.plan"), targets.load(name))
        for name in ("rtx-3060", "rtx-4090")
    ]
    assert plans[0].path.read_bytes() != plans[1].path.read_bytes()


def test_int8_weights_stay_int8_in_the_engine(tmp_path, target):
    source = save_int8_linear(tmp_path / "model.onnx")
    details = tensorrt.convert(source, tmp_path / "model.plan", target).details
    assert 32 * 64 <= details["weight_bytes"] < 2 * 32 * 64


def test_dynamic_batch_gets_a_profile(tmp_path, target):
    source = save(tmp_path / "model.onnx", TWO_LAYERS.format(batch="batch", width=32))
    details = tensorrt.convert(source, tmp_path / "model.plan", target).details
    assert details["dims"] == {"batch": [1, 1, 8]}


def test_every_refused_node_is_named(tmp_path, target):
    source = save(tmp_path / "model.onnx", REFUSED)
    with pytest.raises(EdgekitError) as caught:
        tensorrt.convert(source, tmp_path / "model.plan", target)
    assert "2 error(s)" in caught.value.what
    assert "Det node 'first'" in caught.value.why
    assert "Det node 'second'" in caught.value.why
    assert only_source_is_left(source)


def test_check_only_parses(source):
    tensorrt.check(source)
    assert only_source_is_left(source)
    save(source, REFUSED)
    with pytest.raises(EdgekitError, match="cannot parse"):
        tensorrt.check(source)


def test_architecture_that_only_its_device_can_build(source, target):
    orin = target.model_copy(update={"compute_capability": "8.7"})
    with pytest.raises(EdgekitError, match=r"compute capability 8\.7") as caught:
        tensorrt.convert(source, source.with_suffix(".plan"), orin)
    assert "8.9" in caught.value.why
    assert "on-device" in caught.value.fix
    assert only_source_is_left(source)


def test_target_without_tensorrt(source):
    with pytest.raises(EdgekitError, match="takes no TensorRT engine"):
        tensorrt.convert(source, source.with_suffix(".plan"), targets.load("cpu"))


def test_missing_source(tmp_path, target):
    with pytest.raises(EdgekitError, match="does not exist"):
        tensorrt.convert(tmp_path / "none.onnx", tmp_path / "none.plan", target)


def test_package_that_is_not_installed(source, target, monkeypatch):
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EdgekitError, match="not installed") as caught:
        tensorrt.convert(source, source.with_suffix(".plan"), target)
    assert "pip install tensorrt-rtx" in caught.value.fix


def test_unwritable_output(tmp_path, source, target):
    (tmp_path / "file").touch()
    with pytest.raises(EdgekitError, match="cannot be made"):
        tensorrt.convert(source, tmp_path / "file" / "engine.plan", target)


def test_full_disk_is_said_so(source, target, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensorrt, "_work", full)
    with pytest.raises(files.NoSpace):
        tensorrt.convert(source, source.with_suffix(".plan"), target)
    assert not source.with_suffix(".plan").exists()


def test_a_killed_build_is_an_error_with_its_log(source, target, monkeypatch):
    dying = source.with_name("dying")
    dying.write_text("#!/bin/sh\necho the last words >&2\nkill -KILL $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(tensorrt.sys, "executable", str(dying))
    with pytest.raises(EdgekitError, match="killed by SIGKILL") as caught:
        tensorrt.convert(source, source.with_suffix(".plan"), target)
    assert "the last words" in caught.value.why
    assert "memory" in caught.value.fix
    assert not source.with_suffix(".plan").exists()


def test_ctrl_c_leaves_no_file_and_no_process(source, target, monkeypatch):
    def interrupt(text):
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt, "say", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tensorrt.convert(source, source.with_suffix(".plan"), target)
    assert only_source_is_left(source)
    assert not psutil.Process().children()


def test_an_old_engine_is_replaced(source, target):
    out = source.with_suffix(".plan")
    out.write_bytes(b"old")
    tensorrt.convert(source, out, target)
    assert out.read_bytes().startswith(runtime.RTX_MAGIC)


@pytest.mark.skipif(cuda_available(), reason="there is a GPU")
def test_engine_without_a_gpu_says_so(source, target):
    assert runtime.unavailable() == "no GPU"
    artifact = tensorrt.convert(source, source.with_suffix(".plan"), target)
    with pytest.raises(EdgekitError, match="not run: no GPU") as caught:
        runtime.open(artifact.path)
    assert caught.value.why
    assert caught.value.fix


def test_missing_engine(tmp_path):
    with pytest.raises(EdgekitError, match="cannot be read"):
        runtime.open(tmp_path / "none.plan")

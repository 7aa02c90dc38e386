"""The on-device kit: made here, run here in a process of its own, its result read back."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit import targets
from edgekit.converters import on_device
from edgekit.converters.kit.cuda import cuda_available
from edgekit.converters.kit.measure import compare, statistics, within
from edgekit.converters.kit_facts import TOLERANCE, kit_facts
from edgekit.errors import EdgekitError

pytest.importorskip("tensorrt_rtx")

KIT = Path(on_device.__file__).with_name("kit")
MODEL = """
<ir_version: 8, opset_import: ["" : {opset}]>
double ({type}[{batch}, 4] x) => ({type}[{batch}, 4] y) {{ y = Add(x, x) }}
"""


without_gpu = pytest.mark.skipif(cuda_available(), reason="there is a GPU")


def save(path, opset=17, type="float", batch=1):
    onnx.save(onnx.parser.parse_model(MODEL.format(opset=opset, type=type, batch=batch)), path)
    return path


def add_reference(kit, factor=2.0):
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    np.savez(kit / "reference.npz", **{"input/x": x, "output/y": factor * x})


@pytest.fixture
def target():
    return targets.load("jetson-orin-nano-super")


@pytest.fixture
def artifact(tmp_path, target):
    made = on_device.convert(save(tmp_path / "double.onnx"), tmp_path / "on_device", target)
    add_reference(made.path)
    return made


def kits(artifact):
    return {"jetson-orin-nano-super": artifact.details["model_sha256"]}


def test_the_kit_runs_on_python_3_8():
    files = sorted(KIT.glob("*.py"))
    assert files
    for file in files:
        ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 8))
        names = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            for name in _imported(node)
        }
        assert names <= sys.stdlib_module_names | {"numpy", "kit"}


def _imported(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [node.module]
    return []


def test_what_a_kit_holds(artifact, target):
    files = {path.name for path in artifact.path.iterdir()}
    assert files == {"run.pyz", "kit.json", "model.onnx", "README.txt", "reference.npz"}
    facts = json.loads((artifact.path / "kit.json").read_text())
    assert facts["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 4]}]
    assert (facts["dims"], facts["states"]) == ({}, [])
    assert facts["target"]["name"] == target.name
    assert facts["tensorrt"] == "10.3"
    readme = (artifact.path / "README.txt").read_text()
    assert artifact.details["trtexec"] in readme
    assert "JetPack 6.2" in readme
    assert "MAXN_SUPER" in readme


@without_gpu
def test_run_builds_with_tensorrt_rtx_and_reuses_the_engine(artifact, run_kit):
    first = run_kit(artifact.path, "--compute-capability", "8.9")
    assert first.returncode == 0, first.stderr
    result = on_device.read_result(artifact.path / "result.json", kits(artifact))
    assert result.status == "built, not run: no CUDA device"
    assert result.build["reused"] is False
    assert result.build["compute_capability"] == "8.9"
    assert result.timing is None
    plan = artifact.path / "engine.plan"
    built = plan.stat().st_mtime_ns
    assert run_kit(artifact.path, "--compute-capability", "8.9").returncode == 0
    assert json.loads((artifact.path / "result.json").read_text())["build"]["reused"] is True
    assert plan.stat().st_mtime_ns == built
    assert run_kit(artifact.path, "--compute-capability", "8.6").returncode == 0
    assert plan.stat().st_mtime_ns != built


@without_gpu
def test_no_gpu_and_no_architecture_is_an_error(artifact, run_kit):
    done = run_kit(artifact.path)
    assert done.returncode == 2
    assert "No CUDA device" in done.stderr
    assert not (artifact.path / "result.json").exists()


def test_on_a_jetson_it_checks_and_measures(artifact, jetson, run_kit):
    done = run_kit(artifact.path, "--iterations", "20", **jetson)
    assert done.returncode == 0, done.stderr
    result = on_device.read_result(artifact.path / "result.json", kits(artifact))
    assert result.status == "passed"
    assert result.device["gpu"] == {"name": "Orin", "compute_capability": "8.7"}
    assert (result.tensorrt, result.warnings, result.profile) == ("10.3.0", (), None)
    assert result.build["activation_bytes"] == 512
    assert result.drift["y"]["max_abs"] == 0
    assert result.drift["y"]["top1"] == 1
    assert list(result.cold) == ["load_ms", "first_ms"]
    assert all(ms > 0 for ms in result.cold.values())
    assert result.device_memory_mb is not None
    assert list(result.timing) == ["call"]
    call = result.timing["call"]
    assert (call["mode"], call["iterations"]) == ("latency", 20)
    assert list(call["latency_ms"]) == "Avg P50 P90 P95 P99 Min Max Std".split()
    assert list(call["device_ms"]) == ["to_device", "compute", "to_host"]
    assert 0 < sum(call["device_ms"].values()) <= call["latency_ms"]["Max"]
    ratio = call["latency_ms"]["Std"] / call["latency_ms"]["Avg"]
    assert call["spread"] == pytest.approx(ratio, 0.02)
    assert call["energy"]["meter"] is None or call["energy"]["joules_per_inference"] > 0
    assert call["watch"]["seconds"] > 0
    for told in ("Cold start:", "Latency of a call (ms):", "Of it on the GPU (ms):", "Energy"):
        assert told in done.stdout


def test_single_stream_draws_from_the_samples_and_gives_p90(artifact, jetson, run_kit):
    done = run_kit(artifact.path, "--mode", "single-stream", **jetson)
    assert done.returncode == 0, done.stderr
    call = json.loads((artifact.path / "result.json").read_text())["timing"]["call"]
    assert (call["mode"], call["samples"]) == ("single-stream", 5)
    assert call["iterations"] == 1024
    assert call["latency_ms"]["P90"] <= call["p90_at_most_ms"] <= call["latency_ms"]["Max"]
    refused = run_kit(artifact.path, "--mode", "single-stream", "--iterations", "10", **jetson)
    assert refused.returncode == 2
    assert "takes 1,024 queries at least" in refused.stderr


def test_a_run_in_the_background_is_followed_to_its_end(artifact, jetson, run_kit):
    started = run_kit(artifact.path, "--background", "--iterations", "3", **jetson)
    assert started.returncode == 0, started.stderr
    followed = run_kit(artifact.path, "--follow", **jetson)
    assert followed.returncode == 0, followed.stderr
    assert "Building with tensorrt 10.3.0" in followed.stdout
    assert "Status: passed." in followed.stdout
    unfit = {**jetson, "FAKE_SM": "11.0"}
    assert run_kit(artifact.path, "--background", **unfit).returncode == 0
    followed = run_kit(artifact.path, "--follow", **unfit)
    assert followed.returncode == 2
    assert "--target jetson-thor" in followed.stdout + followed.stderr


def test_it_times_for_the_least_time_as_well(artifact, jetson, run_kit):
    assert run_kit(artifact.path, "--iterations", "2", "--seconds", "0.3", **jetson).returncode == 0
    call = json.loads((artifact.path / "result.json").read_text())["timing"]["call"]
    assert call["iterations"] > 2
    assert call["watch"]["seconds"] >= 0.3


def test_the_runtime_runs_the_same_engine(artifact, jetson, run_kit):
    assert run_kit(artifact.path, "--iterations", "1", **jetson).returncode == 0
    code = """
import sys
from pathlib import Path
import numpy as np
from edgekit.targets.runtimes import tensorrt
plan = Path(sys.argv[1])
assert tensorrt.unavailable() == ""
assert tensorrt.trace(plan, {"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[2] * 4]
with tensorrt.open(plan) as engine:
    y = engine.infer({"x": np.arange(12, dtype=np.float32).reshape(3, 4)})["y"]
    assert y.tolist() == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18, 20, 22]], y
    times = engine.device_times()
    assert list(times) == ["to_device", "compute", "to_host"] and min(times.values()) > 0, times
    try:
        engine.infer({"x": np.zeros((1, 4))})
    except Exception as error:
        sys.stdout.write(f"{type(error).__name__}: {error}")
"""
    command = [sys.executable, "-c", code, str(artifact.path / "engine.plan")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **jetson}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "EdgekitError" in done.stdout
    assert "Input 'x' is float64; the engine takes float32" in done.stdout


def test_wrong_outputs_fail_and_are_reported(artifact, jetson, run_kit):
    done = run_kit(artifact.path, "--iterations", "5", FAKE_FACTOR="-1", **jetson)
    assert done.returncode == 1
    result = json.loads((artifact.path / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["drift"]["y"]["cosine"] < 0.9
    assert result["timing"]["call"]["throughput"] > 0


def test_flags_stand_in_for_strong_types_before_tensorrt_10(tmp_path, xavier, run_kit):
    target = targets.load("jetson-xavier-nx")
    source = save(tmp_path / "half.onnx")
    model = onnx.load(source)
    model.graph.initializer.append(onnx.helper.make_tensor("unused", 10, [1], [1.0]))
    onnx.save(model, source)
    kit = on_device.convert(source, tmp_path / "on_device", target)
    add_reference(kit.path)
    assert kit.details["precision"] == "fp16"
    assert kit.details["trtexec"].count("--fp16") == 1
    done = run_kit(kit.path, "--iterations", "1", **xavier)
    assert done.returncode == 0, done.stderr
    assert json.loads((kit.path / "engine.plan").read_bytes())["flags"] == ["FP16"]


def product(path, weight):
    """A model that multiplies by a weight (4, 2)."""
    values = ", ".join(map(str, np.asarray(weight).flatten()))
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> product (float[1, 4] x) => (float[1, 2] y)'
        f"<float[4, 2] w = {{{values}}}> {{ y = MatMul(x, w) }}"
    )
    onnx.save(onnx.parser.parse_model(text), path)
    return path


SPARSE = [[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 4.0]]


def test_a_sparse_model_is_built_as_one(tmp_path, target, jetson, run_kit):
    kit = on_device.convert(product(tmp_path / "m.onnx", SPARSE), tmp_path / "on_device", target)
    assert "--sparsity=enable" in kit.details["trtexec"]
    x = np.ones((1, 4), np.float32)
    np.savez(kit.path / "reference.npz", **{"input/x": x, "output/y": x @ np.float32(SPARSE)})
    done = run_kit(kit.path, "--iterations", "1", **jetson)
    assert done.returncode == 0, done.stderr
    assert json.loads((kit.path / "engine.plan").read_bytes())["flags"] == ["SPARSE_WEIGHTS"]


@pytest.mark.parametrize(
    ("weight", "device"),
    [
        ([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], "jetson-orin-nano-super"),
        ([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 0.0]], "jetson-orin-nano-super"),
        (SPARSE, "jetson-xavier-nx"),
    ],
    ids=["dense", "sparse along the outputs", "no sparse tensor cores"],
)
def test_no_other_model_is(weight, device, tmp_path):
    source = product(tmp_path / "m.onnx", weight)
    kit = on_device.convert(source, tmp_path / "on_device", targets.load(device))
    facts = json.loads((kit.path / "kit.json").read_text())
    assert "SPARSE_WEIGHTS" not in facts["flags"]


@without_gpu
def test_tensorrt_rtx_takes_the_flag(tmp_path, target, run_kit):
    kit = on_device.convert(product(tmp_path / "m.onnx", SPARSE), tmp_path / "on_device", target)
    x = np.ones((1, 4), np.float32)
    np.savez(kit.path / "reference.npz", **{"input/x": x, "output/y": x @ np.float32(SPARSE)})
    assert run_kit(kit.path, "--compute-capability", "8.9").returncode == 0


def test_a_changed_model_is_refused(artifact, run_kit):
    with (artifact.path / "model.onnx").open("ab") as file:
        file.write(b"\0")
    done = run_kit(artifact.path, "--compute-capability", "8.9")
    assert done.returncode == 2
    assert "not the one this kit was made with" in done.stderr


def test_missing_reference_is_named(artifact, run_kit):
    (artifact.path / "reference.npz").unlink()
    done = run_kit(artifact.path, "--compute-capability", "8.9")
    assert done.returncode == 2
    assert "reference.npz" in done.stderr


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("8.5.2", "--int8 --fp16"),
        ("10.3", "--stronglyTyped"),
        ("11.4", "--saveEngine=engine.plan "),
    ],
)
def test_trtexec_follows_the_version(version, expected):
    facts = {
        "tensorrt": version,
        "flags": ["INT8", "FP16"],
        "dims": {"batch": [1, 1, 8], "length": [1, 128, 2048], "past": [0, 256, 4096]},
        "inputs": [
            {"name": "x", "shape": ["batch", "length"]},
            {"name": "conv", "shape": [1, 3, 8]},
            {"name": "key", "shape": ["batch", 4, "past", 16]},
        ],
    }
    line = on_device.trtexec(facts)
    assert expected in line
    assert ("--stronglyTyped" in line) == version.startswith("10")
    assert ("--fp16" in line) == version.startswith("8")
    assert "--minShapes=x:1x1,key:1x4x0x16 --optShapes=x:1x128,key:1x4x256x16" in line
    assert "--maxShapes=x:8x2048,key:8x4x4096x16 " in line


def test_a_batch_that_varies_is_up_to_eight(tmp_path, target):
    source = save(tmp_path / "double.onnx", batch="n")
    kit = on_device.convert(source, tmp_path / "on_device", target)
    facts = json.loads((kit.path / "kit.json").read_text())
    assert facts["inputs"][0]["shape"] == ["n", 4]
    assert facts["dims"] == {"n": [1, 1, 8]}
    assert "--maxShapes=x:8x4" in kit.details["trtexec"]


def test_opset_above_the_device_is_refused(tmp_path):
    source = save(tmp_path / "double.onnx", opset=20)
    with pytest.raises(EdgekitError, match="has opset 20"):
        on_device.convert(source, tmp_path / "on_device", targets.load("jetson-xavier-nx"))
    assert not (tmp_path / "on_device").exists()


def test_operator_that_only_newer_parsers_take_is_refused(tmp_path, target):
    source = tmp_path / "norm.onnx"
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> norm (float[1, 4] x) => (float[1, 4] y)'
        "<float[4] s = {1, 1, 1, 1}> { [the_norm] y = LayerNormalization(x, s) }"
    )
    onnx.save(onnx.parser.parse_model(text), source)
    with pytest.raises(EdgekitError, match="the_norm") as caught:
        on_device.convert(source, tmp_path / "old", targets.load("jetson-xavier-nx"))
    assert "8.5.2" in caught.value.why
    assert on_device.convert(source, tmp_path / "new", target).path.is_dir()


def test_external_data_travels_with_the_model(tmp_path, target):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>'
        "add (float[1, 4] x) => (float[1, 4] y) { y = Add(x, w) }"
    )
    weight = np.array([1, 2, 3, 4], np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    source = tmp_path / "add.onnx"
    onnx.save(model, source, save_as_external_data=True, location="add.data", size_threshold=0)
    kit = on_device.convert(source, tmp_path / "on_device", target)
    facts = json.loads((kit.path / "kit.json").read_text())
    assert facts["model"]["files"] == ["model.onnx", "add.data"]
    copied = onnx.load(kit.path / "model.onnx")
    assert onnx.numpy_helper.to_array(copied.graph.initializer[0]).tolist() == [1, 2, 3, 4]


def test_int8_is_seen_in_the_graph(tmp_path, target):
    source = tmp_path / "int8.onnx"
    text = (
        '<ir_version: 8, opset_import: ["" : 17]>'
        "q (float[1, 4] x) => (float[1, 4] y) <float s = {0.1}, int8 z = {0}>"
        "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    )
    onnx.save(onnx.parser.parse_model(text), source)
    kit = on_device.convert(source, tmp_path / "on_device", target)
    assert kit.details["precision"] == "int8"
    facts = json.loads((kit.path / "kit.json").read_text())
    assert facts["tolerance"] == TOLERANCE["int8"]
    assert facts["flags"] == ["INT8", "FP16"]


def test_a_model_of_levels_has_the_tolerance_of_int8(tmp_path, target):
    model = onnx.load(save(tmp_path / "levels.onnx"))
    assert kit_facts(model, target, tmp_path)["tolerance"] == TOLERANCE["fp32"]
    onnx.helper.set_model_props(model, {"edgekit.discrete": "true"})
    facts = kit_facts(model, target, tmp_path)
    assert facts["precision"] == "fp32"
    assert facts["tolerance"] == TOLERANCE["int8"]


def test_an_old_kit_is_replaced(artifact, tmp_path, target):
    again = on_device.convert(tmp_path / "double.onnx", artifact.path, target)
    assert not (again.path / "reference.npz").exists()


def result_of(artifact, **changes):
    content = {
        "schema_version": 3,
        "status": "passed",
        "model_sha256": artifact.details["model_sha256"],
        "target": "jetson-orin-nano-super",
        "precision": "fp32",
        "device": {},
        "tensorrt": "10.3.0",
        "build": {},
        "warnings": [],
        "tolerance": {},
        "drift": {"y": {"max_abs": None, "cosine": None}},
        "cold": None,
        "timing": None,
        "device_memory_mb": None,
        "profile": None,
        **changes,
    }
    path = artifact.path / "result.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 1}, "schema_version is 1"),
        ({"status": "excellent"}, "status"),
        ({"model_sha256": "0" * 64}, "another model"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_result_that_does_not_fit_is_refused(artifact, changes, message):
    path = result_of(artifact, **changes)
    with pytest.raises(EdgekitError, match=message):
        on_device.read_result(path, kits(artifact))


def test_unreadable_results(artifact, tmp_path):
    assert on_device.read_result(result_of(artifact), kits(artifact)).status == "passed"
    for text in ("{", "[]", "{}"):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(EdgekitError):
            on_device.read_result(tmp_path / "result.json", kits(artifact))
    with pytest.raises(EdgekitError, match="is not a device result"):
        on_device.read_result(tmp_path / "none.json", kits(artifact))


def test_nan_passes_no_tolerance():
    expected = np.array([[1.0, 2.0], [4.0, 3.0]])
    broken = np.array([[1.0, np.nan], [4.0, 3.0]])
    drift = compare(broken, expected)
    assert drift["cosine"] is None
    assert not within({"y": drift}, {"cosine": 0.1})
    assert within({"y": compare(expected, expected)}, {"cosine": 1 - 1e-12, "top1": 1.0})
    assert compare(expected[:, ::-1], expected)["top1"] == 0


def test_statistics_are_in_milliseconds():
    values = statistics([0.001, 0.002, 0.003, 0.004])
    assert values["Avg"] == 2.5
    assert values["P50"] == 2.5
    assert (values["Min"], values["Max"]) == (1.0, 4.0)
    assert values["Std"] == round(float(np.std([1, 2, 3, 4])), 4)

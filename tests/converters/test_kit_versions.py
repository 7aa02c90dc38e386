"""The whole kit through stand-ins of the TensorRTs and Pythons that devices have."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit import targets
from edgekit.converters import on_device
from edgekit.converters.kit.files import digest
from edgekit.converters.onnx import MODULE_PATH

tensorrt_rtx = pytest.importorskip("tensorrt_rtx")

#: Each TensorRT, a device that has it (with its SM), and the kit's target.
VERSIONS = {
    "8.5": ("7.2", "jetson-xavier-nx"),
    "10.3": ("8.7", "jetson-orin-nano-super"),
    "10.13": ("11.0", "jetson-thor"),
    "11.4": ("8.7", "jetson-orin-nano-super"),
}
#: As its exporter writes a model of two modules, quantized.
MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
two (float[batch, 4] x) => (float[batch, 4] y)
<float s = {0.5}, int8 z = {0}, float[4, 4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
{
    [quantize] q = QuantizeLinear(x, s, z)
    [dequantize] d = DequantizeLinear(q, s, z)
    [product] p = MatMul(d, w)
    [relu] y = Relu(p)
}
"""
MODULES = {"quantize": "fc", "dequantize": "fc", "product": "fc", "relu": "head.act"}


def make(folder, target):
    """A kit whose nodes are in modules, of a batch that varies."""
    model = onnx.parser.parse_model(MODEL)
    for node in model.graph.node:
        scopes = repr(["", MODULES[node.name], node.name])
        node.metadata_props.add(key=MODULE_PATH, value=scopes)
    onnx.save(model, folder / "two.onnx")
    made = on_device.convert(folder / "two.onnx", folder / "on_device", targets.load(target))
    x = np.array([[0.5, -1, 2, 3.5], [1, 1, -0.5, 0]], np.float32)
    np.savez(made.path / "reference.npz", **{"input/x": x, "output/y": np.maximum(x, 0)})
    return made.path


def fakes(jetson, version, folder):
    sm, _ = VERSIONS[version]
    return {
        **jetson,
        "FAKE_TENSORRT": version,
        "FAKE_SM": sm,
        "FAKE_LOG": str(folder / "calls.jsonl"),
        "FAKE_PYTHON": sys.executable,
    }


def calls(folder, name):
    lines = map(json.loads, (folder / "calls.jsonl").read_text().splitlines())
    return [line["arguments"] for line in lines if line["call"] == name]


def passed(done, kit):
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((kit / "result.json").read_text())
    assert result["status"] == "passed"
    assert result["drift"]["y"]["max_abs"] == 0
    return result


@pytest.mark.parametrize("version", VERSIONS)
def test_every_call_fits_every_tensorrt(version, jetson, run_kit, tmp_path):
    kit = make(tmp_path, VERSIONS[version][1])
    other = ("--any-version",) if version == "11.4" else ()
    environment = fakes(jetson, version, tmp_path)
    done = run_kit(kit, "--iterations", "3", "--profile", *other, **environment)
    result = passed(done, kit)
    assert result["tensorrt"].startswith(version)
    assert sum(part["milliseconds"] for part in result["profile"]["layers"]) > 0
    found = {part["module"] for part in result["profile"]["layers"]}
    assert found <= {"fc", "head.act", ""}
    assert result["timing"]["call"]["device_ms"]["compute"] > 0
    (network,) = calls(tmp_path, "Builder.create_network")
    flags = [arguments["flag"] for arguments in calls(tmp_path, "IBuilderConfig.set_flag")]
    assert flags == (["INT8"] if version == "8.5" else ["SPARSE_WEIGHTS"])
    assert network["flags"] == (2 if version.startswith("10") else 1)
    shapes = calls(tmp_path, "IOptimizationProfile.set_shape")
    assert shapes == [{"input": "x", "min": [1, 4], "opt": [1, 4], "max": [8, 4]}]
    # The one real TensorRT here, nearest to 11, has all that is used of the newest.
    if version == "11.4":
        used = {json.loads(line)["call"] for line in (tmp_path / "calls.jsonl").open()}
        names = [name.rstrip(" =").split(".") for name in sorted(used)]
        assert len(names) > 25
        assert [n for n in names if not hasattr(getattr(tensorrt_rtx, n[0]), n[1])] == []
    watched = calls(tmp_path, "IBuilderConfig.progress_monitor =")
    assert len(watched) == (version != "8.5")
    assert "Building Engine" in done.stdout or version == "8.5"


@pytest.mark.parametrize("version", VERSIONS)
def test_what_tensorrt_refuses_is_said_by_its_name(version, jetson, run_kit, tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> area (float[1, 2, 2] x) => (float[1] y)'
        "{ [the_det] y = Det(x) }"
    )
    kit = make(tmp_path, VERSIONS[version][1])
    onnx.save(model, kit / "model.onnx")
    facts = json.loads((kit / "kit.json").read_text())
    facts["model"]["sha256"] = digest([kit / "model.onnx"])
    (kit / "kit.json").write_text(json.dumps(facts))
    done = run_kit(kit, "--any-version", **fakes(jetson, version, tmp_path))
    assert done.returncode == 2
    assert "1 error(s)" in done.stderr
    assert "no importer" in done.stderr
    assert ("'the_det'" in done.stderr) == (version != "8.5")
    assert not (kit / "engine.plan").exists()


PROBES = """
import tensorrt as trt
class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, text):
        pass
class Unbegun(trt.ILogger):
    def __init__(self):
        pass
builder = trt.Builder(Log())
network = builder.create_network(1)
config = builder.create_builder_config()
probes = {
    "FP16 flag": lambda: trt.BuilderFlag.FP16,
    "platform_has_fast_int8": lambda: builder.platform_has_fast_int8,
    "EXPLICIT_BATCH": lambda: trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH,
    "STRONGLY_TYPED": lambda: trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED,
    "IProgressMonitor": lambda: trt.IProgressMonitor,
    "progress_monitor": lambda: setattr(config, "progress_monitor", None),
    "int8_calibrator": lambda: setattr(config, "int8_calibrator", None),
    "node_name": lambda: trt.ParserError.node_name,
    "INT64": lambda: trt.DataType.INT64,
    "max_workspace_size": lambda: setattr(config, "max_workspace_size", 1),
    "num_bindings": lambda: trt.ICudaEngine.num_bindings,
    "build_engine": lambda: builder.build_engine,
    "set_compute_capability": lambda: config.set_compute_capability,
    "misspelt": lambda: setattr(config, "progres_monitor", None),
    "float flags": lambda: builder.create_network(1.0),
    "wrong name": lambda: builder.create_network(flag=1),
    "a flag's number": lambda: config.set_flag(1),
    "read-only": lambda: setattr(network, "num_inputs", 3),
    "base not begun": lambda: trt.Builder(Unbegun()),
}
refused = []
for name, probe in probes.items():
    try:
        probe()
    except (AttributeError, TypeError) as error:
        refused.append(name)
print(",".join(refused))
"""
#: What no version takes.
NEVER = {"set_compute_capability", "misspelt", "float flags", "wrong name", "a flag's number"}
NEVER |= {"read-only", "base not begun"}
REFUSED = {
    "8.5": {"STRONGLY_TYPED", "IProgressMonitor", "progress_monitor", "node_name", "INT64"},
    "10.3": {"max_workspace_size", "num_bindings", "build_engine"},
    "10.13": {"max_workspace_size", "num_bindings", "build_engine"},
    "11.4": {"max_workspace_size", "num_bindings", "build_engine", "FP16 flag", "EXPLICIT_BATCH"}
    | {"platform_has_fast_int8", "int8_calibrator"},
}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_stand_in_refuses_what_the_real_one_does(version, jetson, tmp_path):
    environment = {**os.environ, **fakes(jetson, version, tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROBES], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.strip().split(",")) == NEVER | REFUSED[version]


#: A Python, and the NumPy that the Linux of a JetPack has with it.
PYTHONS = {"3.8": ("numpy==1.17.4", "8.5"), "3.12": ("numpy==1.26.4", "10.13")}


@pytest.fixture(scope="session")
def pythons(tmp_path_factory):
    """The interpreter of a Python version, and a folder with its NumPy."""
    made = {}

    def find(version):
        if version not in made:
            made[version] = _with_numpy(version, tmp_path_factory.mktemp(f"python{version}"))
        return made[version]

    return find


def interpreter(version):
    """A Python of this version on this machine; None if there is none that runs."""
    homes = Path.home().joinpath(".pyenv", "versions").glob(f"{version}.*/bin/python")
    for path in (*homes, shutil.which(f"python{version}")):
        asked = path and subprocess.run([path, "--version"], capture_output=True, text=True)
        if asked and (asked.stdout + asked.stderr).startswith(f"Python {version}."):
            return str(path)
    return None


def _with_numpy(version, folder):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
    command += ["--no-deps", "--python-version", version, "--target", folder]
    installed = subprocess.run([*command, PYTHONS[version][0]], capture_output=True, text=True)
    if installed.returncode != 0:
        pytest.skip(f"{PYTHONS[version][0]} cannot be installed: {installed.stderr[-200:]}")
    return python, folder


@pytest.mark.parametrize("version", PYTHONS)
def test_it_runs_on_a_devices_python(version, pythons, jetson, run_kit, tmp_path):
    tensorrt = PYTHONS[version][1]
    kit = make(tmp_path, VERSIONS[tensorrt][1])
    python, packages = pythons(version)
    environment = fakes(jetson, tensorrt, tmp_path)
    environment["PYTHONPATH"] += f"{os.pathsep}{packages}"
    told = run_kit(kit, "--check", "--json", python=python, **environment)
    assert told.returncode == 0, told.stdout + told.stderr
    assert json.loads(told.stdout)["device"]["python"].startswith(f"{version}.")
    done = run_kit(kit, "--iterations", "3", "--profile", python=python, **environment)
    assert passed(done, kit)["device"]["python"].startswith(f"{version}.")


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7"])
def test_an_older_python_says_that_it_is_too_old(version, run_kit, tmp_path):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version}")
    done = run_kit(make(tmp_path, "jetson-xavier-nx"), python=python)
    assert done.returncode == 2
    assert f"Python {version} is too old: the kit needs 3.8 or later" in done.stderr
    assert "Traceback" not in done.stderr


def has_numpy(python):
    return subprocess.run([python, "-c", "import numpy"], capture_output=True).returncode == 0


def test_without_numpy_it_says_how_to_get_it(jetson, run_kit, tmp_path):
    python = interpreter("3.8") or interpreter("3.12")
    if python is None or has_numpy(python):
        pytest.skip("every Python here has NumPy")
    kit = make(tmp_path, "jetson-xavier-nx")
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.8: not found')\n")
    environment = {**fakes(jetson, "8.5", tmp_path), "PYTHONPATH": str(tmp_path)}
    done = run_kit(kit, python=python, **environment)
    assert done.returncode == 2
    assert "NumPy: No module named 'numpy'" in done.stderr
    assert "python3-numpy" in done.stderr
    assert "libnvinfer.so.8: not found" in done.stderr

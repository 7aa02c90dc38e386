"""ONNX Runtime's providers for GPUs: the real API, with the CPU in the place of a GPU."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgekit import doctor, packages
from edgekit.errors import EdgekitError
from edgekit.find import find, names
from edgekit.pipeline import Pipeline
from edgekit.targets.runtimes import onnxruntime_device as device

CPU = "CPUExecutionProvider"
NAMES = ("onnxruntime_cuda", "onnxruntime_tensorrt", "onnxruntime_tensorrt_rtx")
RUNTIMES = [pytest.param(find("runtimes", name), id=name) for name in NAMES]
rtx = find("runtimes", "onnxruntime_tensorrt_rtx")
onnxruntime_cpu = find("runtimes", "onnxruntime")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """y = -x, and how many of x are not 0, of any number: a size that only the values tell."""
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("NonZero", ["x"], ["found"])]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("found", TensorProto.INT64, [2, "count"]),
        ],
    )
    path = tmp_path / "model.onnx"
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def batch(*rows: float) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.repeat(np.array(rows, np.float32)[:, None], 3, axis=1)}


class Gpu:
    """onnxruntime with a GPU called cuda whose memory is the host's.

    Every call is bound to the signature of the real function, which is then called with ``cpu``;
    device names are tried on the real ``OrtDevice``.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str]] = []
        value, binding = onnxruntime.OrtValue, onnxruntime.IOBinding
        self._replace(monkeypatch, value, "ortvalue_from_shape_and_type")
        self._replace(monkeypatch, binding, "bind_output")

    def _replace(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        real = inspect.getattr_static(owner, name)
        function = real.__func__ if isinstance(real, classmethod) else real
        signature = inspect.signature(function)

        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            asked = bound.arguments
            onnxruntime.OrtDevice.make(asked["device_type"], asked["device_id"])
            self.calls.append((name, asked["device_type"]))
            asked["device_type"] = "cpu"
            return function(*bound.args, **bound.kwargs)

        monkeypatch.setattr(owner, name, classmethod(call) if function is not real else call)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


@pytest.fixture
def as_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The three runtimes with ONNX Runtime's CPU provider in the place of their own."""
    plugin = SimpleNamespace(get_library_path=lambda: "/plugin.so")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime_ep_nv_tensorrt_rtx", plugin)
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", registered)
    monkeypatch.setattr(packages, "missing", lambda requires: [])
    monkeypatch.setattr(device, "no_gpu", lambda: "")
    monkeypatch.setattr(device, "DeviceSession", partial(device.DeviceSession, device="cpu"))
    for name in NAMES:
        monkeypatch.setattr(find("runtimes", name), "PROVIDER", CPU)
    monkeypatch.setattr(find("runtimes", NAMES[0]), "OPTIONS", {})
    monkeypatch.setattr(find("runtimes", NAMES[1]), "PROVIDERS", [(CPU, {})])
    rtx._devices.cache_clear()
    yield
    rtx._devices.cache_clear()


def registered(name: str, path: str) -> None:
    """As the real one, which takes two texts."""
    assert (name, path) == (CPU, "/plugin.so")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.usefixtures("as_cpu")
def test_the_whole_way_with_the_real_api(runtime, model):
    assert runtime.unavailable() == runtime.untimed() == ""
    with runtime.open(model, 1) as session:
        assert session.device_times() == {}
        found = session.infer(batch(1, 2))
        assert set(session.device_times()) == {"to_device", "compute", "to_host"}
    np.testing.assert_array_equal(found["y"], -batch(1, 2)["x"])
    traced = runtime.trace(model, batch(3))
    np.testing.assert_array_equal(traced["y"], -batch(3)["x"])


def test_inputs_and_outputs_are_in_the_devices_memory(model, gpu):
    with onnxruntime_cpu.open(model, 1) as plain:
        session = device.DeviceSession(plain._session)
        session.infer(batch(1))
        session.infer(batch(2))
    taken = [("ortvalue_from_shape_and_type", "cuda"), *[("bind_output", "cuda")] * 4]
    assert sorted(gpu.calls) == sorted(taken)  # the input's memory is kept


@pytest.fixture
def session(model: Path) -> device.DeviceSession:
    """The binding code on the real CPU provider."""
    return device.DeviceSession(onnxruntime_cpu.open(model, 1)._session, "cpu")


def test_each_call_has_its_own_sizes_and_values(session):
    first = session.infer(batch(1, 2))
    second = session.infer(batch(0, 3))  # as large, with fewer that are not 0
    third = session.infer(batch(5))
    for found, given in ((first, batch(1, 2)), (second, batch(0, 3)), (third, batch(5))):
        np.testing.assert_array_equal(found["y"], -given["x"])
        np.testing.assert_array_equal(found["found"], np.stack(np.nonzero(given["x"])))


def test_an_input_that_is_not_contiguous_is_taken_as_it_is_seen(session):
    values = np.arange(6, dtype=np.float32).reshape(3, 2).T
    np.testing.assert_array_equal(session.infer({"x": values})["y"], -values)


def test_times_are_parts_of_the_call(session):
    session.infer(batch(1))
    first = session.device_times()
    session.infer(batch(*range(1000)))
    second = session.device_times()
    assert all(value >= 0 for value in second.values())
    assert first != second
    assert onnxruntime_cpu.open(Path(session._session._model_path)).device_times() == {}


@pytest.mark.parametrize(
    "inputs",
    [{}, {"z": np.zeros((1, 3), np.float32)}, {"x": np.zeros((1, 3), np.int32)}],
    ids=["none", "name", "type"],
)
def test_inputs_that_do_not_fit_are_refused(session, inputs):
    """ONNX Runtime would take an int32's bytes for those of a float32."""
    with pytest.raises(EdgekitError, match="cannot run the model") as caught:
        session.infer(inputs)
    assert "It takes x (float32)" in caught.value.why


def test_a_wrong_shape_is_an_error(session):
    with pytest.raises(EdgekitError, match="cannot run the model"):
        session.infer({"x": np.zeros((1, 4), np.float32)})


@pytest.mark.parametrize("name", NAMES[:2])
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_the_real_fall_back_to_the_cpu_is_an_error(name, model, monkeypatch, capsys):
    """This onnxruntime has no such provider, and takes the CPU when it is asked for it."""
    runtime = find("runtimes", name)
    monkeypatch.setattr(runtime, "unavailable", lambda: "")
    with pytest.raises(EdgekitError, match=f"cannot be run in {runtime.PROVIDER}") as caught:
        runtime.open(model, 1)
    assert CPU in caught.value.why
    assert "pip install" in caught.value.fix
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_without_it_the_remedy_is_named(runtime, model):
    assert "pip install" in runtime.unavailable()
    assert runtime.unavailable().startswith(runtime.untimed())
    assert "pip" not in runtime.untimed()
    with pytest.raises(EdgekitError, match=f"cannot be run in {runtime.PROVIDER}"):
        runtime.open(model, 1)


def test_without_a_gpu_it_says_so(monkeypatch, model):
    runtime = find("runtimes", NAMES[0])
    known = [runtime.PROVIDER, CPU]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: known)
    assert runtime.unavailable() == "no GPU"
    with pytest.raises(EdgekitError) as caught:
        runtime.open(model)
    assert caught.value.fix == "Run it on a machine with an NVIDIA GPU."


@pytest.mark.usefixtures("as_cpu")
def test_a_library_that_does_not_load_is_the_reason(monkeypatch):
    """The real library here says so: there is no libcuda."""

    def register(name: str, path: str) -> None:
        raise RuntimeError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", register)
    assert "libcuda.so.1" in rtx.unavailable()


@pytest.mark.usefixtures("as_cpu")
def test_a_provider_with_no_device_is_unavailable(monkeypatch):
    monkeypatch.setattr(rtx, "PROVIDER", "Another")
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda *_: None)
    assert rtx.unavailable() == "no RTX GPU (Ampere or later)"


def placed(**operators: list[str]) -> SimpleNamespace:
    """A session whose nodes are in these providers, with what the real one tells them by."""
    parts = [
        SimpleNamespace(
            ep_name=provider, get_nodes=lambda found=found: [node(name) for name in found]
        )
        for provider, found in operators.items()
    ]
    real = dir(onnxruntime.OrtEpAssignedSubgraph), dir(onnxruntime.InferenceSession)
    assert all(set(vars(part)) <= set(real[0]) for part in parts)
    found = SimpleNamespace(
        get_providers=lambda: ["Gpu", CPU], get_provider_graph_assignment_info=lambda: parts
    )
    assert set(vars(found)) <= set(real[1])
    return found


def node(operator: str) -> SimpleNamespace:
    assert {"op_type"} <= set(dir(onnxruntime.OrtEpAssignedNode))
    return SimpleNamespace(op_type=operator)


def test_what_a_provider_leaves_is_said(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(device, "say", said.append)
    parts = placed(Gpu=["MatMul", "Add"], **{CPU: ["Shape", "Gather", "Shape"]})
    device.check_provider(parts, "Gpu", "m.onnx", "")
    assert said == [f"Gpu takes 2 nodes of m.onnx, and leaves 3 to {CPU} (2 Shape, 1 Gather)"]
    device.check_provider(placed(Gpu=["MatMul"]), "Gpu", "m.onnx", "")
    assert len(said) == 1


def test_a_provider_that_takes_nothing_is_an_error():
    with pytest.raises(EdgekitError, match=r"m\.onnx cannot be run in Gpu") as caught:
        device.check_provider(placed(**{CPU: ["NonZero"]}), "Gpu", "m.onnx", "")
    assert "1 NonZero" in caught.value.why


def test_versions_are_found_whichever_package_gave_the_import(monkeypatch):
    """As where onnxruntime-gpu is in the place of onnxruntime."""
    found = packages.versions({"onnxruntime": "another-name-for-it"})
    assert found == {"onnxruntime": onnxruntime.__version__}


def test_the_doctor_lists_every_runtime_with_the_remedy(edgekit):
    found = {way.runtime: way for way in doctor.doctor().runtimes}
    assert list(found) == names("runtimes")
    assert found["onnxruntime"].run == ""
    assert found["onnxruntime_cuda"].opens == (".onnx",)
    shown = edgekit("doctor")
    assert shown.code == 0
    assert all(name in shown.out for name in found)
    assert "cudnn]" in shown.out  # brackets are no mark-up


def test_a_split_models_copies_are_those_of_its_parts():
    def part(milliseconds: float) -> SimpleNamespace:
        times = dict.fromkeys(("to_device", "compute", "to_host"), milliseconds)
        return SimpleNamespace(device_times=lambda: times)

    whole = object.__new__(Pipeline)
    whole._sessions = {"a": part(1), "b": part(2)}
    assert whole.device_times() == {"to_device": 3, "compute": 3, "to_host": 3}
    whole._sessions["c"] = SimpleNamespace(device_times=dict)
    assert whole.device_times() == {}

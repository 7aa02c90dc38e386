"""Whether a device fits a kit: said before anything is built, with what to do."""

import json
import shutil

import numpy as np
import onnx
import pytest

from edgekit import targets
from edgekit.converters import on_device

pytest.importorskip("tensorrt_rtx")

ORIN = "jetson-orin-nano-super"
MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
double (float[1, 4] x) => (float[1, 4] y) <int8[1] weight = {1}> { y = Add(x, x) }
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A kit in int8 for the Orin Nano Super."""
    folder = tmp_path_factory.mktemp("check")
    onnx.save(onnx.parser.parse_model(MODEL), folder / "double.onnx")
    kit = on_device.convert(folder / "double.onnx", folder / "kit", targets.load(ORIN)).path
    x = np.ones((1, 4), np.float32)
    np.savez(kit / "reference.npz", **{"input/x": x, "output/y": 2 * x})
    return kit


@pytest.fixture
def kit(made, tmp_path):
    return shutil.copytree(made, tmp_path / "kit")


def findings(done, fits):
    """The findings by subject; the exit code must say the same."""
    assert done.returncode == (0 if fits else 2), done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["fits"] is fits
    return {found["subject"]: found for found in report["findings"]}


def test_a_device_that_fits(kit, jetson, run_kit):
    found = findings(run_kit(kit, "--check", "--json", **jetson), True)
    assert list(found) == ["Files", "Python", "NumPy", "Disk", "GPU", "TensorRT", "Precision"]
    assert {entry["status"] for entry in found.values()} == {"fits"}
    assert found["TensorRT"]["found"] == "10.3.0"
    done = run_kit(kit, "--check", **jetson)
    assert done.returncode == 0
    assert "Precision: int8" in done.stdout
    assert done.stdout.endswith("This device fits the kit.\n")
    assert not (kit / "engine.plan").exists()


@pytest.mark.parametrize(
    ("device", "subject", "found", "fix"),
    [
        (
            {"FAKE_TENSORRT": "10.13", "FAKE_SM": "11.0", "FAKE_GPU": "NVIDIA Thor"},
            "GPU",
            "this is NVIDIA Jetson AGX Thor (T5000) (jetson-thor); the kit is made for 8.7",
            "edgekit build ... --target jetson-thor; or try this kit as it is: --any-gpu",
        ),
        (
            {"FAKE_SM": "8.9", "FAKE_GPU": "NVIDIA GeForce RTX 4090"},
            "GPU",
            "(rtx-4090); the kit is made for 8.7",
            "--target rtx-4090;",
        ),
        (
            {"FAKE_SM": "8.9", "FAKE_GPU": "NVIDIA L4"},
            "GPU",
            "NVIDIA L4, compute capability 8.9; the kit is made for 8.7",
            "--target rtx-4060 or rtx-4090;",
        ),
        (
            {"FAKE_SM": "6.0"},
            "GPU",
            "compute capability 6.0",
            "edgekit knows no device with this GPU",
        ),
        (
            {"FAKE_TENSORRT": "8.5", "FAKE_SM": "7.2", "FAKE_GPU": "Xavier"},
            "TensorRT",
            "8.5.2.2, older than the kit's 10.3",
            "--target jetson-xavier-nx; or try this TensorRT as it is: --any-version",
        ),
        (
            {"FAKE_TENSORRT": "8.5"},
            "TensorRT",
            "8.5.2.2, older than the kit's 10.3",
            "Install JetPack 6.2 (L4T 36.4, CUDA 12.6) on the device;",
        ),
        (
            {"FAKE_TENSORRT": "11.4"},
            "TensorRT",
            "11.4.0.106, another major version than the kit's 10.3",
            "--any-version",
        ),
        (
            {"FAKE_FAST": "fp16"},
            "Precision",
            "compute capability 8.7 does not run int8",
            f"--target {ORIN} --precision fp16",
        ),
        (
            {"FAKE_FAST": ""},
            "Precision",
            "compute capability 8.7 does not run int8",
            f"--target {ORIN} --precision fp32",
        ),
    ],
)
def test_a_device_that_does_not(device, subject, found, fix, kit, jetson, run_kit):
    environment = {**jetson, **device}
    told = findings(run_kit(kit, "--check", "--json", **environment), False)[subject]
    assert told["status"] == "does not fit"
    assert found in told["found"]
    assert fix in told["fix"]
    done = run_kit(kit, **environment)
    assert done.returncode == 2
    assert "This device cannot run the kit; nothing was built." in done.stderr
    assert found in done.stderr
    assert fix in done.stderr
    assert not (kit / "engine.plan").exists()
    assert not (kit / "result.json").exists()


@pytest.mark.parametrize(
    ("device", "subject", "flag"),
    [
        ({"FAKE_TENSORRT": "10.13"}, "TensorRT", None),
        ({"FAKE_TENSORRT": "11.4"}, "TensorRT", "--any-version"),
        ({"FAKE_SM": "8.9"}, "GPU", "--any-gpu"),
        ({"FAKE_GPU": "NVIDIA Jetson AGX Orin"}, "GPU", None),
    ],
)
def test_what_is_another_but_taken_is_noted_with_the_result(
    device, subject, flag, kit, jetson, run_kit
):
    flags = [flag] if flag else []
    told = findings(run_kit(kit, "--check", "--json", *flags, **{**jetson, **device}), True)
    assert told[subject]["status"] == "note"
    done = run_kit(kit, "--iterations", "1", *flags, **{**jetson, **device})
    assert done.returncode == 0, done.stderr
    assert f"Note: {subject}: " in done.stdout
    warnings = json.loads((kit / "result.json").read_text())["warnings"]
    assert [warning.partition(":")[0] for warning in warnings] == [subject]


@pytest.mark.parametrize(
    ("gpu", "known"),
    [
        ("NVIDIA Jetson AGX Orin", "jetson-agx-orin-64gb"),
        ("NVIDIA Orin NX", "jetson-orin-nx-16gb"),
        ("Orin", ORIN),
    ],
)
def test_a_device_is_known_by_what_it_says_of_itself(gpu, known, kit, jetson, run_kit):
    done = run_kit(kit, "--check", "--json", FAKE_GPU=gpu, **jetson)
    device = json.loads(done.stdout)["device"]
    assert device["target"] == known
    assert device["gpu"] == {"name": gpu, "compute_capability": "8.7"}


def test_a_number_format_that_tensorrt_has_not(kit, xavier, run_kit):
    facts = json.loads((kit / "kit.json").read_text())
    facts["target"]["compute_capability"], facts["tensorrt"] = "7.2", "8.5"
    facts["dtypes"] = ["fp8", "int4"]
    (kit / "kit.json").write_text(json.dumps(facts))
    told = findings(run_kit(kit, "--check", "--json", **xavier), False)["Precision"]
    assert told["found"] == "TensorRT 8.5.2.2 has no fp8; TensorRT 8.5.2.2 has no int4"
    assert "--target jetson-xavier-nx --precision fp16" in told["fix"]


def test_a_number_format_that_the_gpu_does_not_run(kit, jetson, run_kit):
    facts = json.loads((kit / "kit.json").read_text())
    facts["dtypes"] = ["fp8", "int8"]
    (kit / "kit.json").write_text(json.dumps(facts))
    for version in ("10.3", "11.4"):  # 11 has no question to ask of a GPU
        environment = {**jetson, "FAKE_TENSORRT": version}
        told = findings(run_kit(kit, "--check", "--json", "--any-version", **environment), False)
        assert told["Precision"]["found"] == "compute capability 8.7 does not run fp8"


def test_a_disk_that_is_too_full(kit, jetson, run_kit):
    with (kit / "huge.data").open("wb") as file:
        file.truncate(1 << 43)  # 8 tebibytes, of which the disk holds none
    facts = json.loads((kit / "kit.json").read_text())
    facts["model"]["files"] = ["huge.data", "absent.data"]
    (kit / "kit.json").write_text(json.dumps(facts))
    told = findings(run_kit(kit, "--check", "--json", **jetson), False)
    assert "MB free, a build needs" in told["Disk"]["found"]
    assert f"on the disk of {kit}" in told["Disk"]["fix"]
    assert told["Files"]["found"] == "Missing: absent.data."


def test_without_tensorrt_or_a_gpu_each_is_named(kit, run_kit):
    told = findings(run_kit(kit, "--check", "--json", PYTHONPATH="", LD_LIBRARY_PATH=""), False)
    assert told["GPU"]["status"] == "does not fit"
    assert "No CUDA device" in told["GPU"]["found"]

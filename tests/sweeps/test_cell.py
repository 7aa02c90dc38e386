"""One cell, on a machine that is the device, or is not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edgekit import flow
from edgekit.bundle import Bundle
from edgekit.sweeps import Grid
from edgekit.sweeps.cell import Task, do

FAKES = Path(__file__).parents[1] / "converters/fake_jetson"
ORIN = "jetson-orin-nano-super"
FIELDS = {
    "models": ["tiny_of_cells:small"],
    "inputs": ["input:1x3x2x2"],
    "random_calibration": True,
    "samples": 4,
    "evaluation_samples": 4,
    "warmup": 0,
    "iterations": 10,
    "seconds": 0.01,
}


@pytest.fixture
def jetson(tmp_path_factory, monkeypatch):
    """This machine looks like an Orin with TensorRT 10.3 to what it starts."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    folder = tmp_path_factory.mktemp("jetson")
    command = ["gcc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", FAKES / "cuda.c"]
    subprocess.run(command, check=True)
    for name, value in (
        ("LD_LIBRARY_PATH", str(folder)),
        ("PYTHONPATH", str(FAKES)),
        ("FAKE_TENSORRT", "10.3"),
    ):
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that is quick to build."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "tiny_of_cells.py").write_text(
        "import torch\n"
        "def small():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield FIELDS


def task(folder, fields, target, **more):
    (cell,) = Grid.check({**fields, "targets": [target]}, "grid").cells()
    return Task(cell=cell, bundle=folder / cell.name, answer=folder / "unused", **more)


def test_a_kit_is_run_where_it_fits(tmp_path, model, jetson):
    made = do(task(tmp_path, model, ORIN))
    assert made.status == "verified on the device", made
    assert made.kind == "measured"
    assert made.drift_of == "on_device"
    bundle = Bundle.open(tmp_path / made.bundle)
    assert bundle.damaged() == []
    assert do(task(tmp_path, model, ORIN)).latency == made.latency


def test_a_kit_is_not_run_elsewhere(tmp_path, model, jetson, monkeypatch):
    monkeypatch.setenv("FAKE_SM", "7.2")
    made = do(task(tmp_path, model, ORIN))
    assert made.ok
    assert made.status == "built, not run: on the device"
    assert made.kind == "predicted"
    assert 0 < made.predicted["low"] < made.milliseconds < made.predicted["high"]
    assert made.predicted["basis"]
    assert made.drift_of == "model.onnx"


def test_what_is_measured_in_turn_is_built_once(tmp_path, model, monkeypatch):
    made = do(task(tmp_path, model, "cpu", lock=tmp_path / "turns"))
    assert made.kind == "measured"
    steps = Bundle.open(tmp_path / made.bundle).manifest.steps
    assert "cpu/onnx/bench" in steps

    def refuse(*_):
        raise AssertionError("it was made already")

    monkeypatch.setattr("edgekit.work.Work.convert", refuse)
    (tmp_path / "second").mkdir()
    like = task(tmp_path / "second", model, "cpu", like=(tmp_path / made.bundle,))
    assert do(like).latency == made.latency
    with pytest.raises(AssertionError, match="made already"):
        do(task(tmp_path / "third", model, "cpu"))


def test_what_is_not_to_be_measured_is_not(tmp_path, model):
    made = do(task(tmp_path, model, "cpu", measure=False))
    assert made.ok
    assert made.kind != "measured"
    assert made.latency[0]["status"] == flow.NOT_ASKED

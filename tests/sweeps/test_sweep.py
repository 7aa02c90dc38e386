"""Sweeps on this machine, with real cells in real processes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from edgekit.errors import EdgekitError
from edgekit.sweeps import sweep

#: A small model, one that is killed while it loads, and one that waits until it is let go.
MODELS = """
import os, pathlib, signal, time, torch

def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))

def hungry():
    if pathlib.Path("hungry").exists():
        print("allocating", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return small()

def slow():
    pathlib.Path("slow.pid").write_text(str(os.getpid()))
    while pathlib.Path("asleep").exists():
        time.sleep(0.05)
    return small()
"""
COMMON = {
    "inputs": ["input:1x3x2x2"],
    "random_calibration": True,
    "samples": 4,
    "evaluation_samples": 4,
    "warmup": 0,
    "iterations": 10,
    "seconds": 0.01,
}


def entry(name):
    """A model of the grid, by its factory's name."""
    return {"name": name, "model": f"models:{name}"}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """The current folder, which has the models."""
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(out):
    """When each result was written."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "results").glob("*.json")}


def test_a_grid_on_this_machine(desk, edgekit, digits_model, digits_folder):
    (desk / "hungry").touch()
    digits = {"name": "digits", "model": f"timm/{digits_model}", "inputs": []}
    digits |= {"random_calibration": False, "calibration": digits_folder}
    fields = {"models": [entry("hungry"), digits, entry("absent")], "targets": ["cpu"]}
    fields |= {**COMMON, "precisions": ["fp32", "fp16"]}
    rows = {row.name: row for row in sweep(fields, desk / "out", jobs=2)}

    done, dead = rows["digits-fp32-cpu-b1"], rows["hungry-fp32-cpu-b1"]
    absent, skipped = rows["absent-fp32-cpu-b1"], rows["digits-fp16-cpu-b1"]
    assert (done.ok, done.status, done.kind) == (True, "verified", "measured")
    assert done.top1 is not None
    assert done.size > 0
    assert (desk / "out/bundles" / done.bundle / done.artifact).exists()
    assert not dead.ok
    assert dead.status.startswith("crashed: killed by SIGKILL, as the system does when memory")
    assert "allocating" in dead.detail
    assert not absent.ok
    assert absent.status.startswith("failed: ")
    assert skipped.ok
    assert skipped.status == "skipped: CPU of any computer cannot run fp16."

    (desk / "hungry").unlink()
    before = written(desk / "out")
    again = {row.name: row for row in sweep(fields, desk / "out")}
    assert again["hungry-fp32-cpu-b1"].ok
    assert again["digits-fp32-cpu-b1"] == done
    after = written(desk / "out")
    redone = {name for name in before if before[name] != after[name]}
    assert "digits-fp32-cpu-b1.json" not in redone
    with (desk / "out/results.csv").open() as stream:
        table = {(row["model"], row["precision"]): row for row in csv.DictReader(stream)}
    assert float(table["digits", "fp32"]["latency_ms"]) == done.milliseconds
    assert table["absent", "fp32"]["latency"] == ""
    assert len(table) == 6


def test_a_sweep_that_is_killed_goes_on_and_then_is_done(desk, edgekit, monkeypatch):
    driver, worker = _asleep(desk, ["small", "slow"])
    done = written(desk / "out")
    assert list(done) == ["small-fp32-cpu-b1.json"]
    driver.kill()
    driver.communicate(timeout=30)
    psutil.wait_procs([worker], timeout=10)
    assert not worker.is_running(), "what it started ends with it"

    (desk / "asleep").unlink()
    made = edgekit("sweep", "grid.yaml", "-o", "out")
    assert made.code == 0, made.err
    assert "pareto" in made.out
    assert written(desk / "out").items() > done.items()

    def refuse(*_):
        raise AssertionError("nothing is to be done")

    monkeypatch.setattr("edgekit.sweeps.processes.Process", refuse)
    again = json.loads(edgekit("sweep", "grid.yaml", "-o", "out", "--json").out)
    rows = [(row["model"], row["ok"], row["mark"]) for row in again["results"]]
    assert rows == [("small", True, "pareto"), ("slow", True, "pareto")]
    (desk / "models.py").write_text(MODELS.replace("manual_seed(0)", "manual_seed(1)"))
    with pytest.raises(AssertionError, match="nothing is to be done"):
        edgekit("sweep", "grid.yaml", "-o", "out")


def test_ctrl_c_ends_what_runs(desk):
    driver, worker = _asleep(desk, ["slow"])
    driver.send_signal(signal.SIGINT)
    said = driver.communicate(timeout=30)[1]
    assert driver.returncode == 130
    assert "The same command goes on where this one stopped." in said
    assert not worker.is_running()


def _asleep(desk, names):
    """A sweep in a process of its own, and that of its last cell, which waits."""
    (desk / "asleep").touch()
    grid = {**COMMON, "models": [entry(name) for name in names], "targets": ["cpu"]}
    (desk / "grid.yaml").write_text(json.dumps(grid))
    command = [sys.executable, "-m", "edgekit", "sweep", "grid.yaml", "-o", "out"]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    return driver, _pid(desk / "slow.pid", driver)


def _pid(path, driver):
    """The process that writes its number to ``path``."""
    while not (path.exists() and path.read_text()):
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.05)
    return psutil.Process(int(path.read_text()))


def test_nothing_is_written_among_other_files(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(EdgekitError, match="is not a sweep's folder"):
        sweep({"models": ["timm/x"], "targets": ["cpu"]}, tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_bad_input_ends_with_2(edgekit, desk):
    beside = edgekit("sweep", "grid.yaml", "timm/x", "-t", "cpu", "-o", "out")
    assert beside.code == 2
    assert "is a grid, and stands beside 1 more" in beside.err
    bare = edgekit("sweep", "timm/x", "-o", "out")
    assert bare.code == 2
    assert "targets" in bare.err
    failed = edgekit("sweep", "timm/x", "-t", "cpu", "-o", "out")
    assert failed.code == 1, "a cell that failed is a failed check"
    assert "There is no data to check the result with." in failed.out

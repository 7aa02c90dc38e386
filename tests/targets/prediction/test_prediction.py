"""Prediction: what a model takes elsewhere, with an error bar, labelled as predicted."""

from __future__ import annotations

import pytest
import torch

from edgekit import families, targets
from edgekit.errors import EdgekitError
from edgekit.model import Input, Model
from edgekit.targets.prediction import forecast, machine_for, predict, this_cpu
from edgekit.targets.prediction.counting import count
from edgekit.targets.prediction.machine import Machine
from edgekit.targets.prediction.shapes import exported

ORIN = "jetson-orin-nano-super"


@pytest.fixture(scope="module")
def resnet():
    model = families.outline("timm/resnet18", families.Options())
    return count(exported(model, 1), "resnet18")


@pytest.fixture(scope="module")
def large():
    """The same with 64 images: no kernel is too small."""
    model = families.outline("timm/resnet18", families.Options())
    return count(exported(model, 64), "resnet18")


@pytest.fixture
def no_measuring(monkeypatch):
    machine = Machine("cpu", {"fp32": 1e11, "int8": 3e11}, 2e10, floor=1e-6)
    monkeypatch.setattr(this_cpu, "machine", lambda name, threads: machine)


@pytest.mark.parametrize("name", [n for n in targets.names() if n != "neuromorphic"])
def test_every_target_is_predicted(name, resnet, no_measuring):
    target = targets.load(name)
    for precision in ("fp16", "int8", "w8a16", "fp8", "fp32"):
        try:
            target.require(precision)
        except EdgekitError:
            continue
        if (precision, target.runtime) == ("fp32", "coreml"):
            continue
        found = forecast(resnet, target, precision)
        assert 0 < found.low < found.milliseconds < found.high
        assert found.basis.text.startswith("predicted, not measured")
        assert sum(found.shares.values()) == pytest.approx(1)
        assert sum(group.milliseconds for group in found.groups) == pytest.approx(
            found.milliseconds
        )
        assert found.memory_mb > 10


def test_a_missing_peak_is_named(resnet):
    with pytest.raises(EdgekitError, match=r"peak rate in fp32 \(peak\.fp32\)"):
        forecast(resnet, targets.load("iphone-15-pro"), "fp32")
    bare = targets.load(ORIN).model_copy(update={"bandwidth_gb_s": None})
    with pytest.raises(EdgekitError, match=r"bandwidth_gb_s"):
        forecast(resnet, bare, "fp16")


def test_a_target_of_no_device_is_refused(resnet):
    with pytest.raises(EdgekitError, match="no latency is predicted"):
        forecast(resnet, targets.load("neuromorphic"), "fp32")


def test_a_precision_that_does_not_run_is_refused(resnet):
    with pytest.raises(EdgekitError, match="cannot run fp8"):
        forecast(resnet, targets.load(ORIN), "fp8")


def test_narrower_is_quicker_and_smaller(large):
    found = [forecast(large, targets.load(ORIN), p) for p in ("fp32", "fp16", "int8")]
    times, sizes = [p.milliseconds for p in found], [p.memory.weights for p in found]
    assert times == sorted(times, reverse=True)
    assert sizes == sorted(sizes, reverse=True)


def test_a_larger_device_is_quicker(large):
    names = (ORIN, "jetson-agx-orin-64gb", "rtx-4090")
    times = [forecast(large, targets.load(name), "fp16").milliseconds for name in names]
    assert times == sorted(times, reverse=True)


def test_a_device_without_points_has_a_wider_bar(resnet):
    known, strange = (forecast(resnet, targets.load(n), "fp16") for n in (ORIN, "jetson-orin-nano"))
    assert known.basis.near
    assert not strange.basis.near
    assert strange.high / strange.low > known.high / known.low
    assert any("wider bar" in note for note in strange.basis.notes)


def test_operators_without_points_have_a_wider_bar(resnet):
    scans = count(exported(families.outline("reference/lmu", families.Options()), 1), "lmu")
    target = targets.load(ORIN)
    known, strange = forecast(resnet, target, "fp16"), forecast(scans, target, "fp16")
    assert strange.high / strange.low > known.high / known.low
    assert any("operators in dtypes" in note for note in strange.basis.notes)


def test_bounds_follow_the_work():
    heavy = Model(torch.nn.Linear(2048, 2048).eval(), (Input("input", (4096, 2048)),), ("y",), "h")
    assert predict(heavy, targets.load(ORIN), "fp32").groups[0].bound == "compute"
    model = Model(torch.nn.Linear(4, 4).eval(), (Input("input", (1, 4)),), ("y",), "tiny")
    tiny = predict(model, targets.load("rtx-4090"), "fp16")
    assert tiny.groups[0].bound == "launch"
    wide = Model(torch.nn.Linear(8192, 8192).eval(), (Input("input", (1, 8192)),), ("y",), "wide")
    assert predict(wide, targets.load(ORIN), "fp16").groups[0].bound == "memory"


def test_excluded_layers_stay_in_float(digits_model):
    model = families.load(f"timm/{digits_model}", families.Options())
    target = targets.load(ORIN)
    whole = predict(model, target, "int8")
    some = predict(model, target, "int8", exclude=("blocks.*",))
    kept = {g.module for g in some.groups if g.dtype == "int8"}
    assert kept < {g.module for g in whole.groups if g.dtype == "int8"}


def test_old_tensorrt_keeps_scores():
    class Attention(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    model = Model(Attention(), (Input("x", (1, 8, 1024, 64)),), ("y",), "attention")
    new = predict(model, targets.load(ORIN), "fp16")
    old = predict(model, targets.load("jetson-xavier-nx"), "fp16")
    scores = 8 * 1024 * 1024
    assert new.memory.activations < 2 * scores / 1e6 < old.memory.activations
    assert sum(g.bytes for g in old.groups) > sum(g.bytes for g in new.groups) + 4 * scores


def test_a_cpu_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def measure(threads):
        calls.append(threads)
        return {"rates": {"fp32": 1e11, "int8": 2e11}, "bandwidth": 1e10, "floor": 1e-6}

    monkeypatch.setattr(this_cpu, "measure", measure)
    cpu = targets.load("cpu")
    first, second = machine_for(cpu, 1), machine_for(cpu, 1)
    assert first == second
    assert calls == [1]
    machine_for(cpu, 2)
    assert calls == [1, 2]


def test_what_was_measured_long_ago_is_measured_again_and_the_best_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(this_cpu, "AGE", -1.0)
    tries = iter(((1e11, 9e9), (2e11, 1e9)))

    def measure(threads):
        rate, bandwidth = next(tries)
        return {"rates": {"fp32": rate, "int8": rate}, "bandwidth": bandwidth, "floor": 1e-6}

    monkeypatch.setattr(this_cpu, "measure", measure)
    machine_for(targets.load("cpu"), 1)
    found = machine_for(targets.load("cpu"), 1)
    assert (found.rates["fp32"], found.bandwidth) == (2e11, 9e9)


def test_measuring_gives_rates_of_a_computer(monkeypatch):
    monkeypatch.setattr(this_cpu, "SECONDS", 0.02)
    monkeypatch.setattr(this_cpu, "PRODUCT", 128)
    monkeypatch.setattr(this_cpu, "COPY", 1 << 20)
    found = this_cpu.measure(1)
    assert set(found["rates"]) == {"fp32", "int8"}
    assert min(found["rates"].values()) > 1e6
    assert found["bandwidth"] > 1e6
    assert 0 < found["floor"] < 1e-2

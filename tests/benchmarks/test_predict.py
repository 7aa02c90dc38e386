"""benchmarks/predict_*.py: the stored fit is what they give, and what they claim of it holds."""

from __future__ import annotations

import importlib
import json
from math import log
from pathlib import Path

import pytest

from edgekit.targets.prediction.fitted import fitted

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        names = ("predict_fit", "predict_error", "predict_workloads", "yolo")
        yield {name: importlib.import_module(name) for name in names}


@pytest.fixture(scope="module")
def cases(scripts):
    fit = scripts["predict_fit"]
    return [fit.case(point) for point in fit.read()]


def test_the_stored_parameters_are_what_the_points_give(scripts, cases):
    found, stored = scripts["predict_fit"].fit(cases), fitted()
    assert found.keys() == stored.parameters.keys()
    assert len(cases) == stored.points
    offs = [scripts["predict_fit"].residuals(cases, p) for p in (found, stored.parameters)]
    assert abs(offs[0] - offs[1]).max() < 0.01


def test_the_stored_errors_are_those_of_leaving_a_device_out(scripts, cases):
    error = scripts["predict_error"]
    start = dict(fitted().parameters)
    name = "jetson-agx-orin-64gb"
    held = error.leaving(cases, start, [lambda point: point.device == name])
    report = json.loads(error.RESULT.read_text())
    stored = [p for p in report["left_out_points"] if p["device"] == name]
    for each, old in zip(held, stored, strict=True):
        assert each.off == pytest.approx(log(old["predicted_over_measured"]), abs=0.03)


def test_coverage_is_counted_without_the_device(scripts):
    error, point = scripts["predict_error"], scripts["predict_fit"].Point

    def held(device, off):
        return error.Held(point(device, "tensorrt", "m", "fp16", 1, 1, 1.0, False), off)

    calm = [held("a", 0.1), held("b", -0.1)]
    wild = held("c", 2.0)
    assert error.coverage([*calm, wild]) == [True, True, False]


def test_every_point_names_its_source_and_every_unused_one_its_reason(scripts):
    import csv

    for path in (scripts["predict_workloads"].PREDICTION / "points").glob("*.csv"):
        with path.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        assert all(len(row["source"]) > 5 for row in rows)
        assert all(len(row["left_out"]) != 1 for row in rows)
        assert all(float(row["milliseconds"]) > 0 for row in rows)


def test_every_model_of_a_point_is_counted(scripts):
    workloads = scripts["predict_workloads"]
    assert [name for name in workloads.names() if not workloads.place(name).exists()] == []


@pytest.mark.parametrize("name", ["YOLO11n", "YOLO11m", "YOLOv8n"])
def test_detectors_are_as_large_as_published(name, scripts):
    import torch

    yolo, fit = scripts["yolo"], scripts["predict_fit"]
    parameters, operations = yolo.PUBLISHED[name]
    with torch.device("meta"):
        found = sum(p.numel() for p in yolo.make(name).parameters())
    assert found / 1e6 == pytest.approx(parameters, abs=0.06)
    computing = ("conv", "product", "depthwise", "attention")
    flops = sum(g.flops * g.count for g in fit.workload(name) if g.kind in computing)
    assert flops / 1e9 == pytest.approx(operations, rel=0.01)


def test_what_is_stored_is_what_is_counted(scripts):
    workloads = scripts["predict_workloads"]
    from edgekit.targets.prediction.counting import groups
    from edgekit.targets.prediction.groups import merged
    from edgekit.targets.prediction.shapes import exported

    found = merged(groups(exported(workloads.outline("resnet18"), 1)))
    assert tuple(found) == scripts["predict_fit"].workload("resnet18")

"""benchmarks/spiking.py: its models, what it keeps, and what fails an aim."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit import families

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        names = ("spiking", "spiking_report", "spiking_models")
        yield tuple(importlib.import_module(name) for name in names)


def row(way, top1, precision="int8", form="folded", **others):
    return {"way": way, "form": form, "precision": precision, "top1": top1, **others}


def cells(calibrated, tuned, model="vit", difference=0.0):
    """Those of two seeds: the source, T = 8 and T = 16."""
    made = []
    for seed, before in enumerate((0.98, 1.0)):
        key = {"model": model, "seed": seed}
        source = [row("source", before, precision) for precision in ("fp32", "int8")]
        made.append({**key, "steps": None, "passes": [], "rows": source})
        rows = [
            row("calibrated", before - calibrated),
            row("tuned", before - tuned),
            row("tuned", before, form="temporal", difference=difference),
        ]
        passes = ["spiking", "distill:steps=7"]
        made += [{**key, "steps": t, "passes": passes, "rows": rows} for t in (8, 16)]
    return made


def timed(ratio, form="folded"):
    figures = {"ratio": ratio, "first_ms": 0.5, "second_ms": 0.4}
    return {"model": "vit", "steps": 8, "form": form, "precision": "int8", **figures}


@pytest.mark.parametrize(
    ("calibrated", "tuned", "held"),
    [(0.01, 0.005, [True, True]), (0.011, 0.004, [True, False]), (-0.01, 0.006, [False, True])],
)
def test_accuracy_may_fall_by_the_aim_and_no_more(scripts, calibrated, tuned, held):
    _, report, _ = scripts
    judged = report.claims({"cells": cells(calibrated, tuned)})
    assert [claim["holds"] for claim in judged[:2]] == held
    assert "T = 8, fine-tuned" in judged[0]["claim"]
    assert "T = 16, calibration alone" in judged[1]["claim"]


def test_an_aim_is_not_judged_on_some_of_the_seeds(scripts):
    _, report, _ = scripts
    for made, judged in ((cells(0, 0), 1), (cells(0, 0)[:-1], 0)):
        found = [c for c in report.claims({"cells": made}) if "T = 16" in c["claim"]]
        assert len(found) == judged


@pytest.mark.parametrize(("difference", "holds"), [(0.0, True), (1e-6, False)])
def test_the_forms_must_be_equal(scripts, difference, holds):
    _, report, _ = scripts
    judged = report.claims({"cells": cells(0, 0, difference=difference)})[-1]
    assert "4 temporal INT8 engines" in judged["claim"]
    assert judged["holds"] == holds


@pytest.mark.parametrize(("ratio", "holds"), [(1.05, True), (1.06, False)])
def test_only_the_folded_engine_has_an_aim_of_latency(scripts, ratio, holds):
    _, report, _ = scripts
    rows = [timed(ratio), timed(3.0, "temporal")]
    judged = report.claims({"cells": cells(0, 0), "latency": {"rows": rows}})
    (claim,) = [c for c in judged if "time of" in c["claim"]]
    assert claim["holds"] == holds


def test_the_page_has_means_extremes_failures_and_verdicts(scripts):
    _, report, _ = scripts
    made = cells(0.02, 0.0)
    made[1]["rows"][1] = {**row("tuned", 0), "failed": "It does not convert."}
    del made[1]["rows"][1]["top1"]
    machine = {"cpu": "a CPU", "cores": 2, "load_1min": 0.1}
    found = {"cells": made, "environment": machine}
    found["latency"] = {"rows": [timed(1.0), timed(3.0, "temporal")], "environment": machine}
    found["claims"] = report.claims(found)
    text = report.section(found, "What was\ndone.")
    assert "| 8 |  | 97.00 (96.00 to 98.00) |" in text
    assert "1 of 2 failed: It does not convert." in text
    assert "| T = 8, temporal, INT8 | 0.500 | 0.400 | 3.00 |" in text
    assert "Does not hold: vit, T = 16" in text
    assert "`distill:steps=7`" in text


def test_a_cell_is_made_once_for_its_settings(scripts, tmp_path, monkeypatch):
    spiking, *_ = scripts
    asked = []
    monkeypatch.setattr(spiking.Bench, "_rows", lambda *given: asked.append(given[1:]) or [])
    for updates in (7, 7, 9):
        cell = spiking.Bench("vit", 1, tmp_path, updates).cell(4)
        assert cell["passes"][1].startswith(f"distill:steps={updates},")
    assert [passes[1] for _, passes in asked] == [spiking.DISTILL.format(n) for n in (7, 9)]


def test_the_poolformer_is_small_and_has_its_checkpoint(scripts, tmp_path, monkeypatch):
    *_, models = scripts
    monkeypatch.setattr(models.train_digits, "train", lambda *_: None)
    assert "accuracy on 360 held-out images" in models.train(3, tmp_path / "poolformer_3", 1)
    fields = models.source("poolformer", 3, tmp_path)
    options = families.Options(checkpoint=fields["checkpoint"])
    model = families.load(fields["model"], options)
    assert model.weights == "checkpoint"
    assert 1e5 < sum(p.numel() for p in model.module.parameters()) < 3e5
    image = np.zeros((8, 8), np.uint8)
    x = models.digits_models.prepared(np.stack([image, image]))
    assert x.shape[1:] == model.inputs[0].shape[1:]
    torch.manual_seed(3)
    torch.testing.assert_close(model.module(x), models._module().eval()(x))

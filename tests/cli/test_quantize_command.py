"""edgekit quantize: one artifact or table, an analysis, a search; what they write and refuse."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from edgekit.latency import Ratio
from edgekit.quantize.post_training import Quantized
from edgekit.recipe import Recipe
from edgekit.tuning.choice import Goal, Trial, verdict

SMALL = ("--samples", "8", "--evaluation-samples", "8", "--warmup", "0", "--iterations", "10")
FAST = (*SMALL, "--seconds", "0.01", "--effort", "quick")
DEVICE = ("-t", "jetson-orin-nano-super")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def request_(digits_model, digits_folder):
    return ("quantize", f"timm/{digits_model}", "--calibration", digits_folder, *FAST)


def read(path):
    return json.loads(path.read_text())


def test_one_artifact_is_compared_with_its_float_one(edgekit, request_, here):
    result = edgekit(*request_, "-o", "q.onnx")
    assert result.code == 0, result.err
    assert "verified" in result.out
    assert "of fp32" in result.out
    assert "95% interval" in result.out
    assert [path.name for path in here.iterdir()] == ["q.onnx"]


def test_scales_alone(edgekit, request_, here):
    result = edgekit(*request_, "-o", "scales.json")
    assert result.code == 0, result.err
    made = Quantized.load(here / "scales.json")
    assert made.table.effort == "quick"
    assert "blocks.0.mlp.fc1.input" in made.table.sites


def test_an_analysis_names_modules_and_writes_a_recipe(
    edgekit, request_, here, digits_model, digits_folder
):
    result = edgekit(*request_, "--analyze", "--exclude", "head", "-o", "found")
    assert result.code == 0, result.err
    assert {path.name for path in (here / "found").iterdir()} == {
        "recipe.yaml",
        "sensitivity.json",
        "sensitivity.svg",
    }
    found = read(here / "found" / "sensitivity.json")
    assert found["schema_version"] == 1
    modules = [damage["module"] for damage in found["damages"]]
    assert "patch_embed.proj" in modules
    assert "head" not in modules
    for module in modules:
        assert module in result.out
    # Weights that outliers were moved into are judged before they are rounded, too.
    assert all(damage["sqnr_weight"] < 100 for damage in found["damages"])
    drifts = [damage["drift"] for damage in found["damages"]]
    assert drifts == sorted(drifts, reverse=True)
    bars = ElementTree.parse(here / "found" / "sensitivity.svg").getroot()
    assert set(modules) <= {element.text for element in bars.iter()}
    recipe = Recipe.read(here / "found" / "recipe.yaml", {})
    assert recipe.model == f"timm/{digits_model}"
    assert recipe.calibration == digits_folder
    assert recipe.precision == "int8"
    assert recipe.exclude == ("head", *found["suggested"])


@pytest.fixture(scope="module")
def searched(edgekit, request_, tmp_path_factory):
    """A search that every choice passes, for a device that is not here."""
    out = tmp_path_factory.mktemp("searched") / "found"
    return out, edgekit(*request_, *DEVICE, "--max-drift", "0.9", "-o", out)


def test_a_search_for_a_device_that_is_not_here(searched):
    out, result = searched
    assert result.code == 0, result.err
    assert "predicted" in result.out
    found = read(out / "search.json")
    front = found["front"]
    assert found["chosen"] == len(front) - 1
    assert found["final"]["drift"] <= 0.9
    assert [len(point["modules"]) for point in front] == list(range(len(front)))
    assert ElementTree.parse(out / "pareto.svg").getroot().tag.endswith("svg")
    recipe = Recipe.read(out / "recipe.yaml", {})
    assert recipe.precision == "int8"
    assert recipe.targets == DEVICE[1:]
    assert recipe.exclude == ()


def test_a_floor_that_only_some_modules_keep_above(edgekit, request_, searched, here):
    all_ = read(searched[0] / "search.json")
    floor = all_["final"]["drift"] / 2
    result = edgekit(*request_, *DEVICE, "--max-drift", floor, "-o", "some")
    assert result.code == 0, result.err
    some = read(here / "some" / "search.json")
    assert some["final"]["drift"] <= floor
    assert 0 < some["chosen"] < all_["chosen"]
    recipe = Recipe.read(here / "some" / "recipe.yaml", {})
    assert sorted(some["left"]) == list(recipe.exclude)
    quantized = set(some["front"][some["chosen"]]["modules"])
    assert set(recipe.exclude) == set(all_["front"][-1]["modules"]) - quantized


def test_a_search_for_size_measures_what_it_made(edgekit, request_, here):
    assert edgekit(*request_, "--max-drift", "0.9", "--size", "0.2", "-o", "found").code == 0
    found = read(here / "found" / "search.json")
    assert found["sizes_mb"][1] <= 0.2 < found["sizes_mb"][0]
    assert found["ratios"][0]["ratio"] > 0
    assert found["costs"]["source"].startswith("measured")
    recipe = Recipe.read(here / "found" / "recipe.yaml", {})
    assert recipe.precision == "int8"
    assert recipe.exclude == tuple(sorted(found["left"]))
    assert 0 < len(found["left"]) < len(found["analysis"]["damages"])


def test_a_floor_out_of_reach_tells_the_best(edgekit, request_, here):
    result = edgekit(*request_, *DEVICE, "--max-drift", "1e-9", "-o", "found")
    assert result.code == 1
    assert "No choice of int8 modules reaches a drift of at most 1e-09" in result.err
    assert "The most accurate that was tried is" in result.err
    assert not (here / "found" / "recipe.yaml").exists()
    assert read(here / "found" / "search.json")["chosen"] is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-o", "q.plan"], ["One target is needed; none is given", "--target"]),
        (["-o", "folder"], ["does not say what to make", "--analyze", "--accuracy-drop"]),
        (["--analyze", "-o", "q.onnx"], ["q.onnx is to be a folder"]),
        (["--latency", "3", "-o", "f"], ["one floor under accuracy", "--max-drift"]),
        (["--max-drift", "1", "--accuracy-drop", "1", "-o", "f"], ["one floor under accuracy"]),
        (["--max-drift", "1", "--analyze", "-o", "f"], ["two things"]),
        (["--precision", "fp32", "-o", "q.onnx"], ["fp32 quantizes nothing", "int8"]),
        (
            ["--max-drift", "1", "-t", "cpu", "-t", "rtx-4090", "-o", "f"],
            ["One target is needed; these are cpu, rtx-4090"],
        ),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_requests(flags, words, edgekit, request_, here):
    result = edgekit(*request_, *flags)
    assert result.code == 2, result.out
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err
    assert list(here.iterdir()) == []


def test_accuracy_needs_labels(edgekit, request_, tmp_path, here):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((8, 1, 32, 32), np.float32))
    flags = ("--evaluation", tmp_path / "x.npy", "--accuracy-drop", "1", "-t", "rtx-4090")
    result = edgekit(*request_, *flags, "-o", "found")
    assert result.code == 2
    assert "has no labels" in result.err
    assert "--max-drift" in result.err


def ratio(value, threads=1):
    return Ratio(value, value - 0.05, value + 0.05, 10 * value, 10.0, 9, threads)


def test_slower_than_float_is_said_and_float_is_kept():
    slow = [ratio(1.12), ratio(1.05, threads=2)]
    told, precision = verdict("all", "int8", "fp32", slow, by_size=False)
    assert told.startswith("int8 is slower than fp32 here: 1.12x of fp32 on 1 thread")
    assert told.endswith("keep fp32.")
    assert precision == "fp32"
    told, precision = verdict("all", "int8", "fp32", slow, by_size=True)
    assert "smaller, but int8 is slower than fp32" in told
    assert precision == "int8"
    told, precision = verdict("all", "int8", "fp32", [ratio(0.6), ratio(1.2, 2)], by_size=False)
    assert "slower than fp32 on 2" in told
    assert precision == "int8"


def test_goals():
    lost = Trial(3, 3, drift=0.02, drop=0.5, interval=(0.0, 1.0))
    assert Goal(accuracy_drop=0.5).met_by(lost)
    assert not Goal(accuracy_drop=0.4).met_by(lost)
    assert Goal(max_drift=0.02).met_by(lost)
    assert not Goal(max_drift=0.01).met_by(lost)
    goal = Goal(max_drift=1, latency_ms=5, size_mb=2)
    assert goal.exceeded([ratio(0.4)], (4.0, 1.9)) == ""
    assert goal.exceeded([ratio(0.6)], (4.0, 2.5)) == "6.00 ms and 2.50 MB"
    assert str(goal) == "a drift of at most 1, 5 ms a call, 2 MB"

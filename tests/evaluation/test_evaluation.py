"""Evaluate: one harness for the source and all artifacts, and numbers that are the build's."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

import edgekit as package
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError
from edgekit.evaluation import evaluate
from edgekit.recipe import Recipe
from edgekit.work import Work

#: 10 samples of 3 scores, and the classes that are right for the identity.
SAMPLES = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)
LABELS = SAMPLES.argmax(1)


@pytest.fixture(scope="module")
def report(cpu_bundle):
    """The bundle, evaluated on the very samples that judged it when it was built."""
    recipe = Recipe.model_validate(Bundle.open(cpu_bundle).manifest.recipe)
    names = ("top1", "top5", "agreement", "cosine")
    return evaluate(cpu_bundle, Work(recipe).datasets[1], names)


def linear(path: Path, weight: np.ndarray, batch: int | str = "batch", output: str = "y") -> Path:
    """An ONNX file that multiplies its input x by a matrix."""
    tensor = helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.ravel())
    node = helper.make_node("MatMul", ["x", "w"], [output])
    sides = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, size])
        for name, size in (("x", weight.shape[0]), (output, weight.shape[1]))
    ]
    graph = helper.make_graph([node], "g", sides[:1], sides[1:], [tensor])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with data and a model: the identity on three scores."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    np.savez(tmp_path / "data.npz", x=SAMPLES, labels=LABELS)
    np.savez(tmp_path / "bare.npz", x=SAMPLES)
    (tmp_path / "identity_model.py").write_text(
        "import torch\nfrom edgekit import Input, Model\n\n\ndef make(shape=3):\n"
        "    class Same(torch.nn.Module):\n        def forward(self, x):\n"
        "            return x.reshape(-1, shape) * 1\n"
        "    return Model(Same(), (Input('x', (1, 3)),), ('y',), 'same')\n"
    )
    return tmp_path


def test_the_numbers_are_those_of_the_build(report, cpu_bundle):
    manifest = Bundle.open(cpu_bundle).manifest
    source, artifact = report.rows
    assert (source.artifact, artifact.artifact) == ("source", "cpu/model.onnx")
    assert report.samples == manifest.data["judged_samples"]
    assert source.scores["top1"].value == manifest.model["top1"]
    assert artifact.scores["top1"].value == manifest.rows[0].top1
    assert artifact.scores["cosine"].value == pytest.approx(manifest.rows[0].drift["cosine"])
    agreed = manifest.rows[0].drift["top1_agreement"]
    assert artifact.scores["agreement"].value == agreed


def test_differences_and_intervals(report):
    source, artifact = report.rows
    for name in ("top1", "top5"):
        score, base = artifact.scores[name], source.scores[name]
        assert score.interval[0] <= score.value <= score.interval[1]
        assert score.difference == pytest.approx(100 * (score.value - base.value))
        low, high = score.difference_interval
        assert low < score.difference < high
        assert base.difference is None
    assert artifact.scores["cosine"].difference is None
    assert artifact.scores["agreement"].difference is None
    assert source.scores["agreement"].value == 1


def test_json_is_what_python_gives(edgekit, cpu_bundle, digits_folder, tmp_path):
    flags = ("--data", digits_folder, "--samples", "20", "--seed", "3")
    out = tmp_path / "new" / "report.json"
    result = edgekit("eval", cpu_bundle, *flags, "--json", "-o", out)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found == json.loads(out.read_text())
    same = asdict(package.evaluate(cpu_bundle, digits_folder, samples=20, seed=3))
    assert json.loads(json.dumps(same["rows"])) == found["rows"]
    assert set(found["rows"][1]["scores"]) == {"top1", "top5", "cosine"}
    assert found["samples"] == 20
    assert "versions" in found["environment"]
    assert "set the INT8 scales" in found["notes"][0]


def test_the_table(edgekit, cpu_bundle, digits_folder):
    result = edgekit("eval", cpu_bundle, "--data", digits_folder, "--samples", "20")
    assert result.code == 0, result.err
    for word in ("source", "cpu/model.onnx", "onnxruntime", "top1", "cosine", "Wilson"):
        assert word in result.out


def test_a_seed_chooses_samples_and_their_labels(here):
    several = [evaluate("identity_model:make", "data.npz", samples=6, seed=s) for s in range(3)]
    assert [r.rows[0].scores["top1"].value for r in several] == [1, 1, 1]
    assert [r.samples for r in several] == [6, 6, 6]


def test_every_sample_counts_once_whatever_the_batch(here):
    """Four a call leave two over: the last call is filled up, and the filling is not judged."""
    seen = []

    def watch(outputs, labels, expected):
        seen.append((outputs["y"].copy(), labels.copy(), expected["y"].copy()))
        return 0

    linear(here / "four.onnx", np.eye(3), batch=4)
    source = Recipe(model="identity_model:make")
    evaluate(here / "four.onnx", "data.npz", [watch], source, batch=3)
    for outputs, labels, expected in seen:
        assert np.array_equal(outputs, SAMPLES)
        assert np.array_equal(labels, LABELS)
        assert np.array_equal(expected, SAMPLES)
    assert len(seen) == 3  # the source, the artifact, and the source for the difference


def test_a_lone_artifact_takes_prepared_arrays(edgekit, here):
    linear(here / "m.onnx", np.eye(3))
    result = edgekit("eval", "m.onnx", "--data", "data.npz", "--json")
    source, artifact = json.loads(result.out)["rows"]
    assert "pass --model MODEL" in source["status"]
    assert artifact["scores"]["top1"]["value"] == 1
    assert list(artifact["scores"]) == ["top1"]  # three classes: the five highest are all
    compared = edgekit(
        "eval", "m.onnx", "--data", "bare.npz", "-m", "identity_model:make", "--json"
    )
    assert json.loads(compared.out)["rows"][1]["scores"]["cosine"]["value"] == pytest.approx(1)


def test_accuracy_drop_fails_what_is_worse(edgekit, here):
    shifted = np.roll(np.eye(3), 1, axis=1)
    flags = ("--data", "data.npz", "-m", "identity_model:make")
    bad = edgekit("eval", linear(here / "bad.onnx", shifted), *flags, "--accuracy-drop", "0.5")
    assert bad.code == 1
    assert "bad.onnx: top1 is 100.00 points below the source" in bad.err
    assert edgekit("eval", "bad.onnx", *flags).code == 0
    assert edgekit("eval", "bad.onnx", *flags, "--accuracy-drop", "100").code == 0
    good = edgekit("eval", linear(here / "good.onnx", np.eye(3)), *flags, "--accuracy-drop", "0")
    assert good.code == 0, good.err
    flags = ("--data", "bare.npz", "-m", "identity_model:make", "--accuracy-drop", "1")
    unjudged = edgekit("eval", "good.onnx", *flags)
    assert unjudged.code == 2
    assert "No accuracy drop could be judged" in unjudged.err


def test_a_metric_of_your_own_has_a_difference(edgekit, here):
    (here / "mine.py").write_text(
        "def right(outputs, labels, expected):\n"
        "    return (outputs['y'].argmax(1) == labels).mean() / 2\n"
        "def spoil(outputs, labels, expected):\n    outputs['y'][:] = 0\n    return 1\n"
    )
    linear(here / "bad.onnx", np.roll(np.eye(3), 1, axis=1))
    flags = ("--data", "data.npz", "-m", "identity_model:make")
    result = edgekit("eval", "bad.onnx", *flags, "--metric", "mine.py:right", "--json")
    scores = [row["scores"]["mine.py:right"] for row in json.loads(result.out)["rows"]]
    assert [score["value"] for score in scores] == [0.5, 0]
    assert scores[1]["difference"] == -50
    assert scores[1]["interval"] is None
    spoilt = edgekit("eval", "bad.onnx", *flags, "--metric", "mine:spoil", "--metric", "top1")
    assert spoilt.code == 2
    assert "mine:spoil failed" in spoilt.err
    assert "read-only" in spoilt.err


def test_labels_beside_the_data(edgekit, here):
    several = np.eye(3, dtype=np.int64)[LABELS]
    several[0] = 1
    np.save(here / "several.npy", several)
    flags = ("--data", "bare.npz", "--labels", "several.npy")
    metric = ("--metric", "average_precision", "--json")
    result = edgekit("eval", "identity_model:make", *flags, *metric)
    assert result.code == 0, result.err
    assert 0.5 < json.loads(result.out)["rows"][0]["scores"]["average_precision"]["value"] <= 1
    assert "not one class a sample" in edgekit("eval", "identity_model:make", *flags).err
    report = evaluate("identity_model:make", "bare.npz", samples=4, labels=LABELS)
    assert report.rows[0].scores["top1"].value == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["m.onnx", "--data", "photos"], ["how photos becomes its inputs", "--model"]),
        (["m.onnx", "--data", "bare.npz"], ["nothing to judge m.onnx by", "--labels"]),
        (["no.onnx", "--data", "data.npz"], ["no.onnx does not exist"]),
        (["nothing", "--data", "data.npz"], ["'nothing' does not name a model"]),
        (["m.onnx", "--data", "data.npz", "--metric", "cosine"], ["cosine compares with"]),
        (["m.onnx", "--data", "data.npz", "--random-weights"], ["source of m.onnx", "--model"]),
        (["m.onnx", "--data", "data.npz", "-m", "nope:make"], ["nope"]),
        (["identity_model:make", "--data", "data.npz", "-m", "x"], ["it has no --model"]),
        (["identity_model:make", "--data", "bare.npz"], ["nothing to judge identity_model:make"]),
        (["identity_model:make", "--data", "far.npz"], ["go from 0 to 9", "0 to 2"]),
        (["identity_model:make", "--data", "bare.npz", "--metric", "top1"], ["no labels"]),
        (["identity_model:make", "--data", "data.npz", "--labels", "few.npy"], ["(3,)", "10"]),
        (["identity_model:make", "--data", "data.npz", "--labels", "no.npy"], ["no.npy cannot"]),
        (["identity_model:make", "--data", "nan.npz"], ["NaN or infinity", "index 7"]),
        (["identity_model:make", "--set", "shape=7", "--data", "data.npz"], ["does not run on"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0] != "go" else "",
)
def test_bad_input(arguments, words, edgekit, here):
    linear(here / "m.onnx", np.eye(3))
    spoilt = SAMPLES.copy()
    spoilt[7] = np.nan
    np.savez(here / "nan.npz", x=spoilt, labels=LABELS)
    np.savez(here / "far.npz", x=SAMPLES, labels=np.arange(10))
    np.save(here / "few.npy", LABELS[:3])
    result = edgekit("eval", *arguments)
    assert result.code == 2, result.out
    assert "Traceback" not in result.err
    assert all(word in result.err for word in words), result.err


def test_lengths_that_differ_need_a_batch_of_one(here):
    (here / "mean_model.py").write_text(
        "import torch\nfrom edgekit import Dim, Input, Model\n\n\nclass Mean(torch.nn.Module):\n"
        "    def forward(self, x):\n        return x.mean(1)\n\n\n"
        "SHAPE = (1, Dim('length', 1, 3, 9), 3)\n\n\ndef make():\n"
        "    return Model(Mean(), (Input('x', SHAPE),), ('y',), 'mean')\n"
    )
    samples = [(np.repeat(row[None], 2 + i % 3, 0), LABELS[i]) for i, row in enumerate(SAMPLES)]
    with pytest.raises(EdgekitError, match=r"different lengths(?s:.*)--batch 1"):
        evaluate("mean_model:make", samples, batch=2)
    assert evaluate("mean_model:make", samples, batch=1).rows[0].scores["top1"].value == 1


def test_an_artifact_that_fails_is_a_row_and_exit_1(edgekit, here):
    flags = ("--data", "data.npz", "-m", "identity_model:make")
    other = edgekit("eval", linear(here / "other.onnx", np.eye(3), output="z"), *flags)
    assert other.code == 1
    assert "outputs are not the source's" in other.err
    (here / "broken.onnx").write_bytes(b"no model")
    broken = edgekit("eval", "broken.onnx", *flags, "--json")
    assert broken.code == 1
    source, artifact = json.loads(broken.out)["rows"]
    assert source["status"] == "evaluated"
    assert "failed: ONNX Runtime cannot load" in artifact["status"]


@pytest.fixture
def moved(cpu_bundle, digits_model, tmp_path):
    """A copy of the bundle whose source has been moved, and where it is now."""
    copied, model = tmp_path / "bundle", tmp_path / "model"
    shutil.copytree(cpu_bundle, copied)
    shutil.copytree(digits_model, model)
    manifest = (copied / "manifest.json").read_text()
    (copied / "manifest.json").write_text(manifest.replace(str(digits_model), f"{tmp_path}/gone"))
    return copied, model


def test_without_its_source_a_bundle_is_judged_by_labels(edgekit, moved, digits_folder):
    copied, model = moved
    flags = ("--data", digits_folder, "--samples", "20", "--json")
    rows = json.loads(edgekit("eval", copied, *flags).out)["rows"]
    assert rows[0]["status"].startswith("not run: timm/")
    assert set(rows[1]["scores"]) == {"top1", "top5"}
    assert rows[1]["scores"]["top1"]["difference"] is None
    found = json.loads(edgekit("eval", copied, *flags, "-m", f"timm/{model}").out)["rows"]
    assert found[0]["status"] == "evaluated"
    assert found[1]["scores"]["top1"]["value"] == rows[1]["scores"]["top1"]["value"]
    assert edgekit("eval", copied, *flags, "-m", "timm/gone").code == 2


def test_another_model_is_not_taken_for_the_source(moved, digits_folder):
    copied, model = moved
    weights = load_file(model / "model.safetensors")
    save_file({**weights, "head.bias": weights["head.bias"] + 1}, model / "model.safetensors")
    source = Recipe(model=f"timm/{model}")
    row, artifact = evaluate(copied, digits_folder, source=source, samples=4).rows
    assert "is not what the bundle was made of: cosine" in row.status
    assert "cosine" not in artifact.scores


def test_a_damaged_artifact_is_not_judged(moved, digits_folder):
    copied, model = moved
    artifact = copied / "cpu" / "model.onnx"
    artifact.write_bytes(artifact.read_bytes()[:-4] + b"evil")
    source = Recipe(model=f"timm/{model}")
    rows = evaluate(copied, digits_folder, source=source, samples=4).rows
    assert [row.status for row in rows] == ["evaluated", "not run: damaged: not what was built"]
    (copied / "reference.npz").write_bytes(b"")
    rows = evaluate(copied, digits_folder, ["top1"], source, samples=4).rows
    assert "reference.npz" in rows[0].status

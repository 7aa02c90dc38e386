"""Pipeline: a split model is built, verified, timed and refused like any other artifact."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from edgekit import pipeline, single
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError
from edgekit.pipeline import PLAN, Plan
from edgekit.recipe import Recipe

FAST = (
    "--samples", "16", "--evaluation-samples", "16",
    "--warmup", "0", "--iterations", "10", "--seconds", "0.01",
)  # fmt: skip
SIZES = ("depth=1", "tokens=[12,6]", "features=[8,4]", "widths=[16,8]", "heads=2")
MODEL = (
    "reference/two_tower", "--random-weights", "--random-calibration",
    *(word for size in SIZES for word in ("--set", size)),
)  # fmt: skip
PARTS = ["video_0", "audio_0", "video_1", "audio_1"]


@pytest.fixture(scope="module")
def split(tmp_path_factory, edgekit):
    """A bundle of the two towers in INT8. Do not change it."""
    out = tmp_path_factory.mktemp("split") / "bundle"
    flags = ("--precision", "int8", "--split-streams", "-t", "cpu", "-o", out)
    result = edgekit("build", *MODEL, *FAST, *flags)
    assert result.code == 0, result.err
    return out


def test_the_bundle_holds_one_artifact_a_stream_and_step(split):
    (row,) = Bundle.open(split).manifest.rows
    assert (row.path, row.status) == ("cpu/model.onnx.streams", "verified")
    assert row.details["streams"] == ["video", "audio"]
    assert (row.details["segments"], row.details["steps"]) == (4, 2)
    assert row.details["kept_float"] == []
    folder = split / row.path
    plan = Plan.read(folder)
    assert [part.name for part in plan.parts] == PARTS
    assert {file.name for file in folder.iterdir()} == {PLAN, *(p.file for p in plan.parts)}
    assert row.details["sent_bytes"] > 0
    assert Bundle.open(split).damaged() == []


def test_it_is_timed_whole_and_by_part(split, edgekit):
    (row,) = Bundle.open(split).manifest.rows
    assert list(row.latency[0]["parts_ms"]) == PARTS
    assert "to_float" in row.latency[0]
    timed = edgekit("bench", split, "--iterations", "1", "--warmup", "0", "--json")
    (entry,) = json.loads(timed.out)["results"]
    assert list(entry["parts_ms"]) == PARTS
    assert all(took > 0 for took in entry["parts_ms"].values())
    alone = edgekit("bench", split / row.path, "--iterations", "1", "--warmup", "0")
    assert alone.code == 0, alone.err


def test_it_is_verified_again_and_damage_is_found(split, edgekit, tmp_path):
    shutil.copytree(split, tmp_path / "bundle")
    assert edgekit("verify", tmp_path / "bundle").code == 0
    (tmp_path / "bundle" / "cpu" / "model.onnx.streams" / "audio_1.onnx").unlink()
    assert edgekit("verify", tmp_path / "bundle").code == 1


def test_it_gives_what_the_whole_model_gives(split, edgekit, tmp_path):
    scales = ("--scales", split / "scales.json", "--precision", "int8")
    out = tmp_path / "model.onnx"
    result = edgekit("convert", *MODEL, *scales, "-t", "cpu", "-o", out)
    assert result.code == 0, result.err
    inputs, _ = single.load_reference(split / "reference.npz")
    inputs = {name: value[:1] for name, value in inputs.items()}
    found = []
    for path in (out, split / "cpu" / "model.onnx.streams"):
        with pipeline.load("onnxruntime", path, 1) as session:
            found.append(session.infer(inputs))
    whole, parts = found
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, atol=1e-4 * np.abs(value).max())


def test_a_layer_that_diverges_is_found_in_the_part_that_holds_it(split):
    inputs, _ = single.load_reference(split / "reference.npz")
    inputs = {name: value[:1] for name, value in inputs.items()}
    folder = split / "cpu" / "model.onnx.streams"
    traced = pipeline.trace("onnxruntime", folder, inputs)
    sent = {n for part in Plan.read(folder).parts for n in part.inputs} - inputs.keys()
    assert sent
    assert {name.removesuffix("_sent") for name in sent} <= traced.keys()


@pytest.mark.parametrize(
    ("target", "name", "package", "status"),
    [
        ("rtx-4090", "engine.plan.streams", "tensorrt_rtx", "built, not run: no GPU"),
        ("iphone-15-pro", "model.mlpackage.streams", "coremltools", "verified"),
    ],
)
def test_other_runtimes(target, name, package, status, edgekit, tmp_path):
    pytest.importorskip(package)
    flags = ("-t", target, "-o", tmp_path / name, "--split-streams")
    result = edgekit("convert", *MODEL, "--samples", "4", "--evaluation-samples", "4", *flags)
    assert result.code == 0, result.err
    assert status in result.out
    assert [part.name for part in Plan.read(tmp_path / name).parts] == PARTS


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("-t", "cpu", "-o", "model.onnx", "--split-streams"), "-o model.onnx.streams"),
        (("-t", "cpu", "-o", "model.onnx.streams"), "add --split-streams"),
        (("-t", "cpu", "-o", "m.onnx", "--stream-start", "a=video"), "Add --split-streams"),
    ],
)
def test_a_name_or_flag_that_does_not_fit_is_said(flags, said, edgekit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = edgekit("convert", *MODEL, *flags)
    assert result.code == 2
    assert said in " ".join(result.err.split())
    assert not list(tmp_path.iterdir())


def test_a_kit_holds_one_model():
    fields = {"model": "reference/two_tower", "split_streams": True}
    recipe = Recipe.check({**fields, "targets": ["jetson-orin-nano-super"]}, "test")
    with pytest.raises(EdgekitError, match="split by streams"):
        recipe.devices()


def test_a_folder_without_its_plan(tmp_path):
    (tmp_path / "model.onnx.streams").mkdir()
    with pytest.raises(EdgekitError, match=r"plan\.json"):
        pipeline.load("onnxruntime", tmp_path / "model.onnx.streams")

"""Recipe: the file and the flags are the same, and paths in a file are relative to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import EdgekitError
from edgekit.recipe import Recipe


def write(folder: Path, text: str) -> Path:
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "my_model").mkdir()
    text = "model: timm/my_model\ntargets: [cpu]\ncalibration: photos\ncheckpoint: /abs/w.pt\n"
    recipe = Recipe.read(write(tmp_path, text), {})
    assert recipe.calibration == tmp_path / "photos"
    assert recipe.checkpoint == Path("/abs/w.pt")
    assert recipe.model == f"timm/{tmp_path / 'my_model'}"


def test_a_model_that_is_no_folder_stays_a_name(tmp_path):
    recipe = Recipe.read(write(tmp_path, "model: timm/deit_tiny_patch16_224\n"), {})
    assert recipe.model == "timm/deit_tiny_patch16_224"


def test_flags_override_the_file_and_are_relative_to_the_user(tmp_path):
    text = "model: timm/x\ntargets: [cpu]\ncalibration: photos\nprecision: fp32\n"
    flags = {"precision": "int8", "calibration": Path("here")}
    recipe = Recipe.read(write(tmp_path, text), flags)
    assert recipe.precision == "int8"
    assert recipe.calibration == Path("here")
    assert recipe.targets == ("cpu",)


def test_what_a_manifest_records_is_the_recipe_again(tmp_path):
    recipe = Recipe(
        model="timm/x", targets=("cpu",), batch="dynamic", exclude=("head",), checkpoint="w.pt"
    )
    assert Recipe.check(recipe.model_dump(mode="json"), "the manifest") == recipe


@pytest.mark.parametrize("batch", [1, 8, "dynamic"])
def test_batches(batch):
    assert Recipe(model="timm/x", batch=batch).batch == batch


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "timm/x", "presicion": "int8"}, ["presicion", "Did you mean precision"]),
        ({"model": "timm/x", "batch": 0}, ["batch is not right", "0"]),
        ({"model": "timm/x", "batch": "-1"}, ["batch is not right", "'dynamic'"]),
        ({"model": "timm/x", "precision": "int4"}, ["precision is not right", "int4"]),
        ({"targets": ["cpu"]}, ["model is not right", "Field required"]),
    ],
)
def test_bad_fields_are_named(fields, words):
    with pytest.raises(EdgekitError) as caught:
        Recipe.check(fields, "recipe.yaml")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_devices_are_known_able_and_at_least_one():
    assert [t.name for t in Recipe(model="timm/x", targets=("cpu",)).devices()] == ["cpu"]
    for targets, precision, message in (
        ((), "fp32", "has no target"),
        (("toaster",), "fp32", "Unknown target"),
        (("rtx-4090", "cpu"), "fp16", "cannot run fp16"),
    ):
        with pytest.raises(EdgekitError, match=message):
            Recipe(model="timm/x", targets=targets, precision=precision).devices()

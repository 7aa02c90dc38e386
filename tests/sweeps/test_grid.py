"""Grids: which cells a file or flags mean."""

from __future__ import annotations

import pytest

from edgekit.errors import EdgekitError
from edgekit.sweeps import Cell, Grid

FILE = """
models:
  - timm/vit_tiny_patch16_224
  - {name: tuned, model: timm/vit_tiny_patch16_224, checkpoint: tuned.safetensors}
precisions: [fp32, int8]
targets: [cpu, rtx-4090]
batches: [1, 8, dynamic]
calibration: photos
samples: 32
"""


def test_a_file_is_a_recipe_whose_axes_are_lists(tmp_path):
    (tmp_path / "grid.yaml").write_text(FILE)
    cells = Grid.read(tmp_path / "grid.yaml").cells()
    assert len(cells) == 2 * 2 * 2 * 3
    assert len({cell.name for cell in cells}) == len(cells)
    points = {(c.model, c.precision, c.target, c.batch) for c in cells}
    assert ("tuned", "int8", "rtx-4090", "dynamic") in points
    for cell in cells:
        recipe = cell.recipe
        assert (recipe.precision, recipe.targets) == (cell.precision, (cell.target,))
        assert (recipe.batch, recipe.samples) == (cell.batch, 32)
        assert recipe.calibration == tmp_path / "photos"
        assert (recipe.checkpoint is not None) == (cell.model == "tuned")


def test_a_cell_that_travels_still_knows_what_was_asked_for():
    """Asking for samples that are not there is an error; their default is not."""
    fields = {"models": ["timm/x"], "targets": ["cpu"], "samples": 256}
    (asked,) = Grid.check(fields, "grid").cells()
    back = Cell.model_validate_json(asked.model_dump_json(exclude_unset=True))
    assert back.recipe.model_fields_set == asked.recipe.model_fields_set
    assert "samples" in back.recipe.model_fields_set
    assert "seed" not in back.recipe.model_fields_set


def test_flags_replace_fields(tmp_path):
    (tmp_path / "grid.yaml").write_text(FILE)
    grid = Grid.read(tmp_path / "grid.yaml", {"batches": [4], "samples": 8})
    assert {(c.batch, c.recipe.samples) for c in grid.cells()} == {(4, 8)}
    assert {c.recipe.calibration for c in grid.cells()} == {tmp_path / "photos"}


def test_a_model_folder_is_looked_for_beside_the_file(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "grid.yaml").write_text("models: timm/mine\ntargets: cpu")
    (cell,) = Grid.read(tmp_path / "grid.yaml").cells()
    assert (cell.model, cell.recipe.model) == ("timm/mine", f"timm/{tmp_path}/mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [timm/x]", "targets"),
        ("models: []\ntargets: [cpu]", "models"),
        ("models: [timm/x]\ntargets: [cpx]", "Did you mean cpu"),
        ("models: [timm/x]\ntargets: [cpu]\nprecision: int8", "Did you mean precisions"),
        ("models: [timm/x]\ntargets: [cpu]\nprecisions: [int9]", "precision is not right"),
        ("models: [timm/x]\ntargets: [cpu]\nbatches: [0]", "batch is not right"),
        ("models: [timm/x]\ntargets: [cpu]\nsamples: many", "samples is not right"),
        ("models: [{model: a, batch: 2}]\ntargets: [cpu]", "batch"),
        ("models: [{checkpoint: a}]\ntargets: [cpu]", "no 'model'"),
        ("models: [timm/x, timm/x]\ntargets: [cpu]", "Two models"),
        ("[1]", "name: value"),
        (":", "name: value|cannot be read"),
    ],
)
def test_a_malformed_grid_says_where(tmp_path, text, message):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(EdgekitError, match=f"(?s){message}"):
        Grid.read(path)


def test_names_of_files_are_short_and_unlike():
    long = "timm//" + "folder/" * 60 + "model"
    models = ["timm/a", "timm/a_", "timm_a", long, f"{long}2"]
    cells = Grid.check({"models": models, "targets": ["cpu"]}, "grid").cells()
    names = {cell.name for cell in cells}
    assert len(names) == len(models)
    assert all(len(name) < 150 and "/" not in name for name in names)

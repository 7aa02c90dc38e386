"""Compression: passes in a row, from a recipe and from the command line, and into a bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit import compression, families
from edgekit.bundle import Bundle
from edgekit.compress import Context, apply, describe, entry_of, parse
from edgekit.compress.drop_layers import DropLayers
from edgekit.errors import EdgekitError
from edgekit.evaluation import evaluate
from edgekit.families import Options
from edgekit.recipe import Recipe
from edgekit.source import Source

#: Measured hardly at all.
FAST = "--samples 16 --evaluation-samples 16 --warmup 0 --iterations 10 --seconds 0.01".split()
DROP = "drop_layers:keep=[1]"


@pytest.fixture
def fields(digits_model, digits_folder):
    return {
        "model": f"timm/{digits_model}",
        "calibration": digits_folder,
        "samples": 16,
        "evaluation_samples": 16,
    }


def left(model):
    """Blocks that compute something."""
    return sum(any(True for _ in block.parameters()) for block in model.module.blocks)


def recipe(fields, *passes, **others):
    return Recipe.check({**fields, "passes": passes, **others}, "here")


def test_a_compressed_folder_is_a_model(fields, tmp_path):
    asked = recipe(fields, DROP)
    stages = compression.compress(asked, tmp_path / "small")
    assert [stage.name for stage in stages] == ["source", DROP]
    assert stages[1].parameters < stages[0].parameters
    assert stages[1].operations < stages[0].operations
    loaded = families.load(f"compressed/{tmp_path / 'small'}", Options())
    assert left(loaded) == 1
    assert loaded.history == (DROP,)
    made = compression.run(Source(asked), None).model
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), made.module(x))


def test_the_source_is_not_needed_any_more(fields, tmp_path, digits_model):
    copy = tmp_path / "source"
    shutil.copytree(digits_model, copy)
    compression.compress(recipe({**fields, "model": f"timm/{copy}"}, DROP), tmp_path / "small")
    shutil.rmtree(copy)
    assert families.load(f"compressed/{tmp_path / 'small'}", Options()).weights == "checkpoint"


def test_a_factory_without_a_folder_is_a_source(fields, tmp_path, digits_model, monkeypatch):
    code = f"""
from edgekit import families

def made():
    return families.load("timm/{digits_model}", families.Options(random_weights=True))
"""
    (tmp_path / "own_vit.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    asked = {"model": "own_vit:made", "checkpoint": Path(digits_model) / "model.safetensors"}
    compression.compress(recipe({**fields, **asked}, DROP), tmp_path / "small")
    assert left(families.load(f"compressed/{tmp_path / 'small'}", Options())) == 1


def test_a_compressed_model_is_compressed_again(fields, tmp_path):
    compression.compress(recipe(fields, DROP), tmp_path / "small")
    small = {**fields, "model": f"compressed/{tmp_path / 'small'}"}
    again = recipe(small, "sparsify:method=magnitude")
    compression.compress(again, tmp_path / "smaller")
    shutil.rmtree(tmp_path / "small")
    loaded = families.load(f"compressed/{tmp_path / 'smaller'}", Options())
    assert len(loaded.history) == 2
    assert left(loaded) == 1


def test_a_finished_run_returns_at_once(fields, tmp_path, monkeypatch):
    first = compression.compress(recipe(fields, DROP), tmp_path / "small")
    monkeypatch.setattr(DropLayers, "call", None)
    assert compression.compress(recipe(fields, DROP), tmp_path / "small") == first


def test_what_was_done_before_a_failure_is_not_done_again(fields, tmp_path, monkeypatch):
    calls = []
    plain = DropLayers.call

    def counted(self, model, context):
        calls.append(self.keep)
        return plain(self, model, context)

    monkeypatch.setattr(DropLayers, "call", counted)
    failing = recipe(fields, DROP, "drop_layers:count=9")
    with pytest.raises(EdgekitError) as caught:
        compression.compress(failing, tmp_path / "small")
    assert "drop_layers" in caught.value.what
    assert DROP in caught.value.why
    assert not (tmp_path / "small").exists()
    compression.compress(recipe(fields, DROP), tmp_path / "small")
    assert calls.count((1,)) == 1
    assert not list(tmp_path.glob(".*"))


def test_a_bundle_of_a_compressed_model(fields, tmp_path, edgekit):
    flags = ("-t", "cpu", "--pass", DROP, "--precision", "int8", *FAST)
    build = ("build", fields["model"], "--calibration", fields["calibration"], *flags)
    ran = edgekit(*build, "-o", tmp_path / "bundle")
    assert ran.code == 0, ran.err
    assert DROP in ran.out
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert [stage["name"] for stage in manifest.model["stages"]] == ["source", DROP]
    assert manifest.model["parameters"] == manifest.model["stages"][1]["parameters"]
    assert manifest.rows[0].status == "verified"
    kept = families.load(f"compressed/{tmp_path / 'bundle' / 'compressed'}", Options())
    reference = np.load(tmp_path / "bundle" / "reference.npz")
    with torch.no_grad():
        actual = kept.module(torch.from_numpy(reference["input/x"])).numpy()
    assert np.allclose(actual, reference["output/logits"], atol=1e-5)
    report = evaluate(tmp_path / "bundle", fields["calibration"])
    assert "not run" not in report.rows[0].status
    changed = edgekit(*build, "--iterations", 11, "-o", tmp_path / "bundle")
    assert changed.code == 0
    assert "Pass:" not in changed.err


def test_from_the_command_line(fields, tmp_path, edgekit):
    command = ("compress", fields["model"], "--pass", DROP, "--calibration", fields["calibration"])
    ran = edgekit(*command, "--samples", 16, "-o", tmp_path / "small", "--json")
    assert ran.code == 0, ran.err
    assert [stage["name"] for stage in json.loads(ran.out)] == ["source", DROP]
    inspected = edgekit("inspect", f"compressed/{tmp_path / 'small'}", "--json")
    assert inspected.code == 0, inspected.err


def test_a_quantized_model_is_trained(fields, tmp_path, edgekit):
    flags = ("-t", "cpu", "--precision", "w4a8", "--effort", "quick", *FAST)
    build = ("build", fields["model"], "--calibration", fields["calibration"], *flags)
    for name, qat in (("plain", ()), ("trained", ("--qat", "steps=8,batch_size=16,losses=[mse]"))):
        ran = edgekit(*build, *qat, "-o", tmp_path / name)
        assert ran.code == 0, ran.err
    rows = {name: Bundle.open(tmp_path / name).manifest for name in ("plain", "trained")}
    assert rows["trained"].recipe["qat"]["rate"] == 1e-4
    error = {name: found.rows[0].drift["relative"] for name, found in rows.items()}
    assert error["trained"] < error["plain"]
    refused = edgekit("build", fields["model"], "--calibration", fields["calibration"],
                      "-t", "cpu", "--qat", "steps=8", "-o", tmp_path / "float")  # fmt: skip
    assert refused.code == 2
    assert "--qat" in refused.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--pass", "prun:ratio=0.5"), "prune"),
        (("--pass", "prune:rato=0.5"), "ratio"),
        (("--pass", "drop_layers:count=many"), "count"),
        (("--pass", "drop_layers:count"), "NAME=VALUE"),
        ((), "edgekit passes"),
    ],
)
def test_bad_input(flags, said, fields, tmp_path, edgekit):
    command = ("compress", fields["model"], "--calibration", fields["calibration"], *flags)
    ran = edgekit(*command, "-o", tmp_path / "small")
    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_compressed(fields, tmp_path, cpu_bundle):
    onnx = cpu_bundle / "cpu" / "model.onnx"
    with pytest.raises(EdgekitError, match=r"model\.onnx cannot be compressed"):
        compression.compress(recipe({**fields, "model": str(onnx)}, DROP), tmp_path / "small")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(EdgekitError, match="does not overwrite"):
        compression.compress(recipe(fields, DROP), tmp_path / "notes")


def test_a_damaged_folder_says_so(fields, tmp_path):
    compression.compress(recipe(fields, DROP), tmp_path / "small")
    weights = tmp_path / "small" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(EdgekitError, match="truncated"):
        families.load(f"compressed/{tmp_path / 'small'}", Options())
    with pytest.raises(EdgekitError, match="--checkpoint"):
        families.load(f"compressed/{tmp_path / 'small'}", Options(checkpoint=Path("w.pt")))
    (tmp_path / "small" / "compressed.json").write_text("{")
    with pytest.raises(EdgekitError, match="malformed"):
        families.load(f"compressed/{tmp_path / 'small'}", Options())
    with pytest.raises(EdgekitError, match="not a compressed model"):
        families.load(f"compressed/{tmp_path}", Options())


def test_a_pass_is_the_same_in_a_flag_and_in_a_recipe():
    flag = parse(DROP)
    assert flag == parse({"drop_layers": {"keep": [1]}})
    assert parse(describe(flag)) == flag
    assert parse(entry_of(flag)) == flag
    assert describe(parse("distill")) == "distill"


def test_apply_leaves_the_model_as_it_is(digits_model):
    model = families.load(f"timm/{digits_model}", Options())
    made = apply(parse(DROP), model, Context())
    assert left(model) == 2
    assert model.history == ()
    assert left(made) == 1
    assert not made.module.training


def test_the_catalogue_lists_every_option(edgekit):
    ran = edgekit("passes", "--json")
    assert ran.code == 0
    listed = {entry["name"]: entry for entry in json.loads(ran.out)}
    assert {option["name"] for option in listed["drop_layers"]["options"]} >= {"keep", "average"}
    assert all(len(entry["text"]) > 40 for entry in listed.values())
    assert edgekit("passes", "prun").code == 2

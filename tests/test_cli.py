"""The command line seen from outside: what it says, its exit codes, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image

from edgekit.bundle import Bundle


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def model(digits_model):
    return f"timm/{digits_model}"


def refused(result, *words):
    """The command ended with 2, said all the words, and showed no traceback."""
    assert result.code == 2, result.err
    assert re.findall("^Error: ", result.err, re.MULTILINE) == ["Error: "]
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class Evil:
    def __reduce__(self):
        return (os.system, ("touch owned",))


def truncated(folder: Path, digits_model: Path) -> Path:
    whole = (digits_model / "model.safetensors").read_bytes()
    (folder / "w.safetensors").write_bytes(whole[: len(whole) // 2])
    return folder / "w.safetensors"


def code_pickle(folder: Path, _: Path) -> Path:
    torch.save({"weight": Evil()}, folder / "w.pt")
    return folder / "w.pt"


def other_model(folder: Path, _: Path) -> Path:
    torch.save({"conv.weight": torch.zeros(2, 2)}, folder / "w.pth")
    return folder / "w.pth"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder, _: folder / "no.safetensors", ["no.safetensors does not exist"]),
        (truncated, ["w.safetensors is truncated", "Copy or download it again"]),
        (code_pickle, ["w.pt is a pickle that needs code", "safetensors"]),
        (other_model, ["w.pth does not fit", "conv.weight", "blocks.0", "--allow-partial"]),
    ],
    ids=["missing", "truncated", "code", "architecture"],
)
def test_bad_checkpoints(make, words, edgekit, model, digits_model, digits_folder, here):
    path = make(here, digits_model)
    before = left(here)
    data = ("--evaluation", digits_folder)
    refused(
        edgekit("build", model, "--checkpoint", path, *data, "-t", "cpu", "-o", "out/b"), *words
    )
    assert left(here) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-t", "rtx4090"], ["Unknown target 'rtx4090'", "Did you mean", "rtx-4090"]),
        (["-t", "cpu", "--precision", "fp16"], ["cannot run fp16", "--precision fp32 or int8"]),
        ([], ["has no target", "edgekit targets"]),
        (["-t", "cpu", "--set", "num_classes"], ["--set 'num_classes' is not NAME=VALUE"]),
        (
            ["-t", "cpu", "--input", "x:1xA"],
            ["--input 'x:1xA' is not an input", "NAME:1x3x224x224"],
        ),
        (["-t", "cpu", "--input", "x:1x3:float99"], ["float99", "float32"]),
        (["-t", "cpu", "--batch", "0"], ["batch", "0"]),
        (["-t", "cpu", "--batch", "many"], ["batch", "dynamic", "many"]),
        (["-t", "cpu", "--samples", "0"], ["samples", "greater than or equal to 1"]),
        (["-t", "cpu", "--batch", "500"], ["too small to judge with", "--batch"]),
        (
            ["-t", "cpu", "--precision", "int8", "--exclude", "no*"],
            ["'no*' matches no", "patch_embed.proj"],
        ),
        (["-t", "cpu", "--precision", "int8", "--scales", "no.json"], ["no.json does not exist"]),
        (["-t", "cpu", "--random-weights", "--checkpoint", "recipe.txt"], ["both a checkpoint"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("-") else "",
)
def test_bad_flags(flags, words, edgekit, model, digits_folder, here):
    (here / "recipe.txt").write_text("a file")
    calibration = ("--calibration", digits_folder, "--samples", "16")
    given = calibration[:2] if "--samples" in flags else calibration
    refused(edgekit("build", model, *given, *flags, "-o", "out"), *words)
    assert left(here) == {"recipe.txt"}


def test_unknown_choices_of_a_flag_are_named(edgekit, model, here):
    result = edgekit("build", model, "-t", "cpu", "--precision", "int3", "-o", "out")
    assert result.code == 2
    assert "int8" in result.err
    assert left(here) == set()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("timm/deit_tinny_patch16_224", ["deit_tinny_patch16_224", "deit_tiny_patch16_224"]),
        ("resnet50", ["'resnet50' does not name a model", "timm/NAME"]),
        ("nowhere.module:factory", ["nowhere"]),
        ("transformers/./nofolder", ["nofolder"]),
        ("recipe.yaml", ["recipe.yaml cannot be read"]),
    ],
)
def test_unknown_models(source, words, edgekit, digits_folder, here):
    result = edgekit("build", source, "-t", "cpu", "--evaluation", digits_folder, "-o", "out")
    refused(result, *words)
    assert left(here) == set()


def test_no_data_at_all(edgekit, model, here):
    refused(edgekit("build", model, "-t", "cpu", "-o", "out"), "no data", "--random-calibration")
    assert left(here) == set()


def bad_image(folder: Path) -> str:
    for index in range(4):
        Image.new("L", (8, 8), index).save(folder / f"{index}.png")
    (folder / "2.png").write_bytes(b"no image")
    return "2.png (index 2) cannot be read"


def nan_sample(folder: Path) -> str:
    images = np.zeros((6, 1, 32, 32), np.float32)
    images[3, 0, 5, 5] = np.nan
    np.save(folder / "samples.npy", images)
    return "holds NaN or infinity"


def empty(folder: Path) -> str:
    return f"Folder {folder} holds no images"


@pytest.mark.parametrize("spoil", [bad_image, nan_sample, empty])
@pytest.mark.parametrize("role", ["--calibration", "--evaluation"])
def test_bad_data(spoil, role, edgekit, model, digits_folder, here, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    message = spoil(data)
    source = data / "samples.npy" if spoil is nan_sample else data
    other = "--evaluation" if role == "--calibration" else "--calibration"
    flags = (role, source, other, digits_folder, "--precision", "int8")
    refused(edgekit("build", model, "-t", "cpu", *flags, "-o", "out"), message)
    assert left(here) == set()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: timm/x\ntarget: cpu\n", ["Unknown field", "'target'", "Did you mean targets"]),
        ("model: timm/x\ntargets: [cpu]\nsamples: few\n", ["samples is not right", "few"]),
        ("model: timm/x\n1: 2\n", ["Unknown field", "'1'"]),
        ("- a\n- b\n", ["recipe.yaml"]),
        ("model: [\n", ["recipe.yaml cannot be read"]),
    ],
)
def test_bad_recipes(text, words, edgekit, here):
    (here / "recipe.yaml").write_text(text)
    refused(edgekit("build", "recipe.yaml", "-o", "out"), *words)
    assert left(here) == {"recipe.yaml"}


def test_an_output_that_is_no_bundle_is_left_alone(edgekit, model, digits_folder, here):
    (here / "photos").mkdir()
    (here / "photos" / "me.png").write_text("dear")
    (here / "file").write_text("dear")
    command = ("build", model, "-t", "cpu", "--evaluation", digits_folder, "-o")
    refused(edgekit(*command, "photos"), "photos exists and is not a bundle")
    refused(edgekit(*command, "file"), "file exists and is not a bundle")
    refused(edgekit(*command, "file/out"), "cannot be made")
    assert left(here) == {"photos", "file"}
    assert left(here / "photos") == {"me.png"}


def test_two_builds_at_once_of_one_bundle(edgekit, model, digits_folder, here):
    (here / ".out.building").mkdir()
    with FileLock(here / ".out.building" / ".lock"):
        command = ("build", model, "-t", "cpu", "--evaluation", digits_folder, "-o", "out")
        refused(edgekit(*command), "out is being built by another process")
        assert left(here) == {".out.building"}


def test_a_full_disk(edgekit, digits_request, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        result = edgekit(*digits_request, "-t", "cpu", "-o", disk / "a" / "out")
        refused(result, "no space left to write", "MB are free", "Free some space")
        assert left(disk) == set()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_convert_makes_one_checked_file(edgekit, digits_request, here):
    request = digits_request[1:]
    measuring = request.index("--warmup")
    result = edgekit("convert", *request[:measuring], "-t", "cpu", "-o", "m.onnx")
    assert result.code == 0, result.err
    assert "verified" in result.out
    assert left(here) == {"m.onnx"}
    refused(edgekit("convert", *request[:measuring], "-t", "cpu", "-o", "m.plan"), "does not run")
    refused(edgekit("convert", *request[:measuring], "-t", "cpu", "-o", "m.txt"), ".onnx")
    assert left(here) == {"m.onnx"}


def test_verify_passes_then_finds_a_tampered_artifact(edgekit, cpu_bundle, tmp_path):
    assert edgekit("verify", cpu_bundle).code == 0
    copied = tmp_path / "bundle"
    shutil.copytree(cpu_bundle, copied)
    artifact = copied / "cpu" / "model.onnx"
    artifact.write_bytes(artifact.read_bytes()[:-4] + b"evil")
    result = edgekit("verify", copied)
    assert result.code == 1
    assert "cpu/model.onnx: damaged" in result.err


def test_verify_one_artifact(edgekit, cpu_bundle, tmp_path):
    artifact, reference = cpu_bundle / "cpu" / "model.onnx", cpu_bundle / "reference.npz"
    flags = ("--reference", reference, "--json")
    result = edgekit("verify", artifact, *flags, "--precision", "int8")
    assert result.code == 0
    assert json.loads(result.out)[0]["status"] == "verified"
    too_strict = edgekit("verify", artifact, *flags, "--precision", "fp32")
    assert too_strict.code == 1
    assert "is under 0.99999" in too_strict.err
    refused(edgekit("verify", artifact), "nothing to compare", "--reference")
    cut = tmp_path / "cut.npz"
    cut.write_bytes(reference.read_bytes()[:500])
    refused(edgekit("verify", artifact, "--reference", cut), "cut.npz cannot be read")
    refused(edgekit("verify", tmp_path / "no.onnx", "--reference", reference), "no.onnx")


def test_inspect_counts_and_needs_no_target_or_data(edgekit, model, digits_model, cpu_bundle):
    result = edgekit("inspect", model, "--json")
    found = json.loads(result.out)
    assert result.code == 0
    with (digits_model / "config.json").open() as stream:
        assert found["preprocess"]["channels"] == json.load(stream)["model_args"]["in_chans"]
    dim, tokens = 48, 17
    block = 12 * dim**2 * tokens + 2 * dim * tokens**2
    assert found["operations"] == 64 * dim * 16 + 2 * block + dim * 10
    assert len(found["sites"]) == 1 + 2 * 4 + 1
    assert "verified" in edgekit("inspect", cpu_bundle).out
    refused(edgekit("inspect", cpu_bundle, "--spikes", "x.npz"), "is a bundle", digits_model.name)


def test_targets_and_doctor(edgekit):
    assert {"rtx-4090", "cpu"} <= {t["name"] for t in json.loads(edgekit("targets", "--json").out)}
    assert "jetson-orin-nano-super" in edgekit("targets").out
    assert "8.9" in edgekit("targets", "rtx-4090").out
    refused(edgekit("targets", "iphone15"), "iphone-15-pro")
    checkup = json.loads(edgekit("doctor", "--json").out)
    abilities = {each["target"]: each for each in checkup["abilities"]}
    assert abilities["cpu"] == {"target": "cpu", "build": "", "verify": "", "run": ""}
    assert "torch" in checkup["installed"]


def test_a_recipe_file_is_the_same_as_flags(edgekit, cpu_bundle, digits_model, digits_folder, here):
    recipe = Bundle.open(cpu_bundle).manifest.recipe
    fields = {name: value for name, value in recipe.items() if value not in (None, {}, [])}
    (here / "digits").symlink_to(digits_folder)
    (here / "recipes").mkdir()
    text = yaml.safe_dump({**fields, "calibration": "../digits", "targets": ["jetson-thor"]})
    (here / "recipes" / "r.yaml").write_text(text)
    result = edgekit("build", "recipes/r.yaml", "-t", "cpu", "-o", "out")
    assert result.code == 0, result.err
    made, straight = (Bundle.open(path).manifest for path in (here / "out", cpu_bundle))
    assert [row.sha256 for row in made.rows] == [row.sha256 for row in straight.rows]

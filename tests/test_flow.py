"""The main job: one command to a verified bundle, again, changed, killed and failed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit import bundle as bundles
from edgekit.bundle import Bundle
from edgekit.converters import coreml
from edgekit.errors import EdgekitError
from edgekit.flow import build
from edgekit.recipe import Recipe

FAST = ("--samples", "16", "--warmup", "0", "--iterations", "10", "--seconds", "0.01")
COMMAND = (sys.executable, "-c", "from edgekit.cli import main; main()")


@pytest.fixture
def ran(monkeypatch):
    """Names of the steps that are really done, not taken over, from here on."""
    names = []
    original = bundles.Draft.step

    def step(self, name, inputs, run, produces=None):
        def noted(room):
            names.append(name)
            return run(room)

        return original(self, name, inputs, noted, produces)

    monkeypatch.setattr(bundles.Draft, "step", step)
    return names


@pytest.fixture
def copied(cpu_bundle, tmp_path):
    """The bundle for cpu at a place where it may change, and its recipe."""
    shutil.copytree(cpu_bundle, tmp_path / "bundle")
    made = Bundle.open(tmp_path / "bundle")
    return made, Recipe.check(made.manifest.recipe, "the manifest")


def alone(path: Path) -> bool:
    """Nothing but ``path`` is in its folder, hidden or not."""
    return [entry.name for entry in path.parent.iterdir()] == [path.name]


def rows(path: Path) -> dict[str, bundles.Row]:
    return {str(row.path): row for row in Bundle.open(path).manifest.rows}


def test_one_command_builds_for_every_runtime(whole_bundle):
    out, result = whole_bundle
    assert result.code == 0, result.err
    assert alone(out)
    found = rows(out)
    assert {path: row.status for path, row in found.items()} == {
        "cpu/model.onnx": "verified",
        "rtx-4090/model.onnx": "verified",
        "rtx-4090/engine.plan": "built, not run: no GPU",
        "jetson-orin-nano-super/model.onnx": "verified",
        "jetson-orin-nano-super/on_device": "built, not run: on the device",
        "iphone-15-pro/model.mlpackage": "verified",
    }
    assert Bundle.open(out).manifest.status == "ok"
    assert Bundle.open(out).damaged() == []
    for path, row in found.items():
        assert row.size >= Bundle.open(out).manifest.model["parameters"], path
        if row.status == "verified":
            assert row.drift["cosine"] > 0.99
            assert row.top1 is not None
        assert path.rpartition("/")[2] in result.out
    assert found["cpu/model.onnx"].latency[0]["status"] == "measured"
    assert found["rtx-4090/engine.plan"].latency[0]["status"] == "not run: no GPU"


def test_one_scale_table_serves_all_and_each_row_says_what_stays_float(whole_bundle):
    found = rows(whole_bundle[0])
    sites = json.loads((whole_bundle[0] / "scales.json").read_text())["sites"]
    every = sum(name.endswith(".weight") for name in sites)
    for path in ("cpu/model.onnx", "rtx-4090/model.onnx", "iphone-15-pro/model.mlpackage"):
        assert found[path].details["kept_float"] == []
        assert found[path].details["quantized_modules"] == every
    assert f"{every} of {every} layers quantized" in whole_bundle[1].out


def test_reference_and_manifest_state_the_proof(whole_bundle):
    out, _ = whole_bundle
    manifest = Bundle.open(out).manifest
    with np.load(out / "reference.npz") as arrays:
        assert arrays["input/x"].shape == (16, 1, 32, 32)
        assert arrays["output/logits"].shape == (16, 10)
    kit = out / "jetson-orin-nano-super" / "on_device"
    assert (kit / "reference.npz").read_bytes() == (out / "reference.npz").read_bytes()
    assert manifest.data["judged_samples"] == manifest.data["calibration_samples"] == 16
    assert manifest.data["random"] is False
    assert manifest.model["weights"] == "checkpoint"
    assert manifest.model["preprocess"]["size"] == [32, 32]
    assert [entry["threads"] for entry in manifest.baseline if entry["runtime"] == "torch eager"]


def test_asked_again_it_returns_at_once_without_torch(copied, tmp_path, digits_request):
    before = (tmp_path / "bundle" / "manifest.json").stat().st_mtime_ns
    code = (
        "import sys; from edgekit.cli import main; main.__globals__['app'](standalone_mode=False)\n"
        "sys.exit(', '.join({'torch', 'onnx', 'timm', 'transformers'} & set(sys.modules)) or 0)"
    )
    arguments = (*digits_request, "-t", "cpu", "-o", str(tmp_path / "bundle"))
    again = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "Bundle:" in again.stdout
    assert (tmp_path / "bundle" / "manifest.json").stat().st_mtime_ns == before


ARTIFACT = {"cpu/onnx", "cpu/onnx/verify", "cpu/onnx/bench"}
QUANTIZED = {*ARTIFACT, "cpu/onnx/to_float"}


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"iterations": 11}, {"cpu/onnx/bench", "cpu/onnx/to_float", "baseline"}),
        ({"exclude": ("head",)}, {"calibrate", *QUANTIZED}),
        ({"seed": 1}, {"reference", "calibrate", *QUANTIZED}),
        ({"precision": "fp32"}, {"reference", *ARTIFACT}),
    ],
    ids=("iterations", "exclude", "seed", "precision"),
)
def test_a_change_redoes_only_what_depends_on_it(copied, ran, change, redone):
    made, recipe = copied
    again = build(recipe.model_copy(update=change), made.path)
    assert set(ran) == redone
    assert again.manifest.status == "ok"
    assert again.damaged() == []
    assert alone(made.path)
    assert (made.path / "scales.json").exists() == ("precision" not in change)


def test_other_evaluation_data_converts_nothing_anew(copied, ran, digits_folder):
    made, recipe = copied
    build(recipe.model_copy(update={"evaluation": digits_folder / "0"}), made.path)
    ran.clear()
    again = build(recipe.model_copy(update={"evaluation": digits_folder / "1"}), made.path)
    assert set(ran) == {"reference", "cpu/onnx/verify"}
    assert again.manifest.data["judged_on"].startswith(str(digits_folder / "1"))


def test_another_target_reuses_the_first(copied, ran):
    made, recipe = copied
    more = recipe.model_copy(update={"targets": ("cpu", "jetson-thor")})
    built = build(more, made.path)
    assert {name for name in ran if not name.startswith("jetson-thor/")} == set()
    assert {row.target for row in built.manifest.rows} == {"cpu", "jetson-thor"}


def test_a_damaged_artifact_is_made_anew(copied, ran):
    made, recipe = copied
    (made.path / "cpu" / "model.onnx").write_bytes(b"not a model")
    assert build(recipe, made.path).damaged() == []
    assert ran == ["cpu/onnx"]  # The same file again: its check and its figures still hold.


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_killed_build_goes_on_at_its_first_unfinished_step(
    sent, code, cpu_bundle, tmp_path, digits_request, ran, edgekit
):
    out = tmp_path / "bundle"
    arguments = (*digits_request, "-t", "cpu", "-o", str(out))
    child = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True)
    steps = tmp_path / ".bundle.building" / ".steps.json"
    while not (steps.exists() and "calibrate" in json.loads(steps.read_text())):
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.02)
    child.send_signal(sent)
    _, said = child.communicate()
    done = set(json.loads(steps.read_text()))
    assert child.returncode == code
    assert not out.exists()
    assert "Traceback" not in said
    assert "Warning" not in said
    assert ("goes on where this one stopped" in said) == (sent == signal.SIGINT)

    assert edgekit(*arguments).code == 0
    assert not done & set(ran)
    assert set(ran) | done == {"reference", "calibrate", *QUANTIZED, "baseline"}
    assert alone(out)
    resumed, straight = Bundle.open(out).manifest, Bundle.open(cpu_bundle).manifest
    assert [row.sha256 for row in resumed.rows] == [row.sha256 for row in straight.rows]
    assert [row.drift for row in resumed.rows] == [row.drift for row in straight.rows]
    assert (out / "scales.json").read_bytes() == (cpu_bundle / "scales.json").read_bytes()


def test_out_of_tolerance_exits_1_names_the_layer_and_marks_the_bundle(
    cpu_bundle, tmp_path, digits_request, edgekit
):
    table = json.loads((cpu_bundle / "scales.json").read_text())
    table["sites"]["blocks.1.mlp.fc1.input"]["scale"] = [1e-6]
    (tmp_path / "scales.json").write_text(json.dumps(table))
    out = tmp_path / "bundle"
    arguments = (*digits_request, "-t", "cpu", "-o", out, "--scales", tmp_path / "scales.json")
    apart = edgekit(*arguments)
    assert apart.code == 2
    assert "Copy both files together" in apart.err
    shutil.copy(cpu_bundle / "scales.safetensors", tmp_path)
    result = edgekit(*arguments)
    assert result.code == 1
    assert "is marked failed" in result.err
    (row,) = Bundle.open(out).manifest.rows
    assert Bundle.open(out).manifest.status == "failed"
    assert row.status.startswith("drift: cosine")
    assert "first diverges at blocks.1.mlp" in row.status
    assert not row.ok
    assert not row.latency
    assert edgekit(*arguments).code == 1


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """A user's own module in the current folder, with data for it; gives the flags to build it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_for_edgekit.py").write_text(
        "import torch\n"
        "def make(width=8):\n"
        "    torch.manual_seed(0)\n"
        "    layers = torch.nn.Linear(4, width), torch.nn.GELU(), torch.nn.Linear(width, 3)\n"
        "    return torch.nn.Sequential(*layers)\n"
    )
    samples = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", input=samples)
    monkeypatch.delitem(sys.modules, "mine_for_edgekit", raising=False)
    model = ("build", "mine_for_edgekit:make", "--input", "input:1x4", "-o", "bundle")
    return (*model, "--calibration", "data.npz", *FAST)


def test_a_factory_of_the_users_own(factory, edgekit, ran, tmp_path):
    command = (*factory, "-t", "cpu", "--set", "width=16", "--batch", "dynamic")
    result = edgekit(*command, "--precision", "int8")
    assert result.code == 0, result.err
    made = Bundle.open(tmp_path / "bundle").manifest
    assert made.rows[0].details["quantized_modules"] == 2
    assert made.model["parameters"] == 4 * 16 + 16 + 16 * 3 + 3
    assert made.data["judged_samples"] == 10
    assert made.data["calibration_samples"] == 16
    ran.clear()
    code = tmp_path / "mine_for_edgekit.py"
    code.write_text(code.read_text() + "# changed\n")
    assert edgekit(*command, "--precision", "int8").code == 0
    assert "reference" in ran


def test_a_transformers_folder_with_its_own_preparation(tmp_path, digits_folder, edgekit):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=8, num_labels=10,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "resample": 2,
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    data = ("--evaluation", digits_folder, *FAST)
    result = edgekit(
        "build", f"transformers/{tmp_path / 'vit'}", "-t", "cpu", *data, "-o", tmp_path / "b"
    )
    assert result.code == 0, result.err
    made = Bundle.open(tmp_path / "b").manifest
    assert made.rows[0].status == "verified"
    assert made.rows[0].drift["max_abs"] < 1e-4
    assert made.model["preprocess"]["mean"] == [0.5] * 3
    assert made.model["inputs"][0]["name"] == "pixel_values"


def test_random_data_is_stated(factory, edgekit, tmp_path):
    at = factory.index("--calibration")
    command = (*factory[:at], "--random-calibration", *FAST, "-t", "cpu", "--precision", "int8")
    assert edgekit(*command).code == 0
    data = Bundle.open(tmp_path / "bundle").manifest.data
    assert data["random"] is True
    assert "random numbers" in data["judged_on"]
    assert "random numbers" in data["calibrated_on"]


def test_exclude_holds_for_a_given_table_too(factory, edgekit, tmp_path):
    command = (*factory, "-t", "cpu", "--precision", "int8")
    assert edgekit(*command).code == 0
    for name in ("scales.json", "scales.safetensors"):
        shutil.copy(tmp_path / "bundle" / name, tmp_path)
    assert edgekit(*command, "--scales", "scales.json", "--exclude", "2").code == 0
    details = Bundle.open(tmp_path / "bundle").manifest.rows[0].details
    assert details["kept_float"] == ["2"]


def test_one_failed_target_hides_no_other(copied, monkeypatch):
    made, recipe = copied

    def refuse(source, out, target):
        raise EdgekitError("Core ML lacks the operator wobble.", "It is new.")

    monkeypatch.setattr(coreml, "convert", refuse)
    more = recipe.model_copy(update={"targets": ("iphone-15-pro", "cpu")})
    built = build(more, made.path)
    assert [(row.target, row.ok) for row in built.manifest.rows] == [
        ("iphone-15-pro", False),
        ("cpu", True),
    ]
    assert "the operator wobble" in built.manifest.rows[0].status
    assert built.manifest.status == "failed"


def test_samples_may_be_python_objects(digits_model, tmp_path, ran):
    images = np.random.default_rng(0).standard_normal((8, 1, 32, 32)).astype(np.float32)
    recipe = Recipe(model=f"timm/{digits_model}", targets=("cpu",), warmup=0, seconds=0.01)
    made = build(recipe, tmp_path / "bundle", evaluation=iter(images))
    assert made.manifest.data["judged_samples"] == 8
    assert made.manifest.rows[0].status == "verified"
    ran.clear()
    build(recipe, tmp_path / "bundle", evaluation=list(images))
    assert ran == []
    build(recipe, tmp_path / "bundle", evaluation=list(images[::-1]))
    assert "reference" in ran

"""plan: full-size models, counted without their weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgekit.cli import app
from edgekit.errors import EdgekitError
from edgekit.plan import plan
from edgekit.recipe import Recipe
from edgekit.single import inspect

QWEN_IMAGE = {
    "_class_name": "QwenImageTransformer2DModel",
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 60,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 3584,
}
FLUX = {
    "_class_name": "FluxTransformer2DModel",
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
#: Prints each model's plan, and the process's peak memory in kB.
CODE = """
import json, resource, sys
from dataclasses import asdict
from edgekit.plan import plan
from edgekit.recipe import Recipe
for model in sys.argv[1:]:
    found = plan(Recipe(model=model, targets=("rtx-4090", "iphone-15-pro")))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({**asdict(found), "peak": peak}))
"""


def test_full_size_models_are_planned_in_little_memory(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    models = []
    for name, config in {"qwen": QWEN_IMAGE, "flux": FLUX}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        models.append(f"diffusers/{tmp_path / name}")
    command = [sys.executable, "-c", CODE, *models]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    plans = map(json.loads, (line for line in done.stdout.splitlines() if line.startswith("{")))
    for found, published in zip(plans, (20.4e9, 11.9e9), strict=True):
        assert found["parameters"] == pytest.approx(published, rel=0.02)
        assert found["weights_gb"]["fp16"] == pytest.approx(2 * published / 1e9, rel=0.02)
        # Every token passes the weights of its stream, about half of all.
        assert found["operations"] > 0.4 * published * 4096
        assert found["peak"] < 2e6, "kB: a fortieth of the weights"
        assert found["fits"]["iphone-15-pro"].startswith("none")


def test_what_fits_depends_on_what_the_device_runs() -> None:
    names = ("rtx-4090", "iphone-15-pro")
    found = plan(Recipe(model="timm/deit_tiny_patch16_224", targets=names))
    assert found.fits == {
        "rtx-4090": "fp32, fp16, int8, int4 (of 24 GB)",
        "iphone-15-pro": "fp32, fp16, int8 (of 8 GB)",
    }
    assert "activations" in found.note


def test_it_agrees_with_inspect() -> None:
    recipe = Recipe(model="timm/test_vit", random_weights=True)
    planned, whole = plan(recipe), inspect(recipe)
    assert planned.parameters == whole.parameters
    assert planned.operations == whole.operations
    assert planned.inputs == whole.inputs


def test_no_targets_means_all_that_state_their_memory() -> None:
    assert len(plan(Recipe(model="reference/lmu")).fits) > 5


def test_the_command() -> None:
    command = ["inspect", "timm/test_vit", "--plan", "--target", "rtx-4090", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.output[done.output.index("{") :])["fits"].keys() == {"rtx-4090"}


def test_a_factory_that_looks_at_values_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "looking.py").write_text(
        "import torch\n"
        "class Looking(torch.nn.Module):\n"
        "    example_inputs = {'x': torch.zeros(1, 4)}\n"
        "    def forward(self, x):\n"
        "        return x * 2 if x.sum().item() > 0 else x\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EdgekitError, match="looks at values"):
        plan(Recipe(model="looking:Looking"))

"""edgekit predict, and edgekit.predict."""

from __future__ import annotations

import json

import pytest

from edgekit import predicting
from edgekit.errors import EdgekitError
from edgekit.recipe import Recipe

ORIN = "jetson-orin-nano-super"


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch):
    from edgekit.targets.prediction import this_cpu
    from edgekit.targets.prediction.machine import Machine

    machine = Machine("cpu", {"fp32": 1e11, "int8": 3e11}, 2e10, floor=1e-6)
    monkeypatch.setattr(this_cpu, "machine", lambda name, threads: machine)


def test_a_table_that_says_predicted(edgekit):
    done = edgekit("predict", "timm/test_vit", "-t", ORIN, "--precision", "int8", "--explain")
    assert done.code == 0, done.err
    for word in ("Predicted: timm/test_vit in int8, batch 1", ORIN, "90% interval", "waits for"):
        assert word in done.out
    assert "leaving the device out" in done.out
    assert "blocks.*" in done.out


def test_json(edgekit):
    done = edgekit("predict", "timm/test_vit", "-t", ORIN, "--batch", "4", "--json")
    (found,) = json.loads(done.out)["predicted"]
    assert found["label"] == "predicted"
    assert found["batch"] == 4
    assert found["low"] < found["milliseconds"] < found["high"]
    assert found["basis"]["spread"]["coverage"] > 0
    assert {group["bound"] for group in found["groups"]} <= {"compute", "memory", "launch"}


def test_all_targets(edgekit):
    done = edgekit("predict", "timm/test_vit", "--all-targets", "--precision", "fp16", "--json")
    found = json.loads(done.out)
    names = {each["target"] for each in found["predicted"]}
    assert {ORIN, "rtx-4090", "iphone-15-pro"} <= names
    assert "cannot run fp16" in found["not_predicted"]["cpu"]


def test_no_target_is_an_error(edgekit):
    done = edgekit("predict", "timm/test_vit")
    assert done.code == 2
    assert "has no target" in done.err


def test_what_cannot_be_predicted_says_what_to_do():
    recipe = Recipe(model="timm/test_vit", passes=({"drop_layers": {"keep": [0]}},))
    with pytest.raises(EdgekitError, match="edgekit compress"):
        predicting.predict(recipe, target=ORIN)
    with pytest.raises(EdgekitError, match="as a stream"):
        predicting.predict(Recipe(model="reference/lmu", mode="stream"), target=ORIN)


def test_a_model_that_looks_at_values_is_predicted_with_its_own(tmp_path, monkeypatch):
    (tmp_path / "looks.py").write_text(
        "import torch\n"
        "class Looks(torch.nn.Module):\n"
        "    example_inputs = {'x': torch.zeros(1, 4)}\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = torch.nn.Linear(4, 4)\n"
        "        self.scale = float(self.fc.weight.abs().max())\n"
        "    def forward(self, x):\n"
        "        return self.fc(x) * self.scale\n"
    )
    monkeypatch.chdir(tmp_path)
    (found,) = predicting.predict("looks:Looks", target=ORIN, precision="fp16")
    assert [group.kind for group in found.groups] == ["product"]

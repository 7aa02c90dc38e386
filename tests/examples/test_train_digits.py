"""examples/train_digits.py: what it writes is what edgekit reads, and a seed says all."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from edgekit import families
from edgekit.families import Options
from edgekit.model import Model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def trainer() -> Iterator[ModuleType]:
    """The script, which finds its neighbours in its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("train_digits")


def _loaded(name: str, folder: Path) -> Model:
    family = "reference" if name == "mamba" else "timm"
    return families.load(f"{family}/{folder}", Options())


@pytest.mark.parametrize("name", ["vit", "crossvit", "mamba"])
def test_a_saved_model_loads_as_it_was(trainer: ModuleType, tmp_path: Path, name: str) -> None:
    torch.manual_seed(3)
    module = trainer.make_model(name).eval()
    trainer.save(name, module, tmp_path)
    model = _loaded(name, tmp_path)
    assert model.weights == "checkpoint"
    assert model.inputs[0].shape == (1, 1, 32, 32)
    assert model.preprocess is not None
    assert (model.preprocess.mean, model.preprocess.std) == ((0.3,), (0.35,))
    assert (model.preprocess.size, model.preprocess.channels) == ((32, 32), 1)
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.module(x), module(x))
    assert 5e4 < sum(p.numel() for p in module.parameters()) < 1e6


def test_the_shipped_model_is_of_this_configuration(trainer: ModuleType) -> None:
    shipped = json.loads((EXAMPLES / "digits_vit" / "config.json").read_text())
    assert trainer.timm_config("vit") == shipped


def test_a_seed_says_what_is_trained(
    trainer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        trainer.main("mamba", tmp_path / folder, epochs=1, seed=seed)
        assert "held-out images" in capsys.readouterr().out
    a, b, c = (load_file(tmp_path / folder / "model.safetensors") for folder in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["head.weight"], c["head.weight"])

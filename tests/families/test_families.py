"""What holds for all families: the forms of a source, and the options' sense."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgekit import families
from edgekit.errors import EdgekitError
from edgekit.families import Options, torchvision
from edgekit.find import names


@pytest.mark.parametrize(
    "source", ["", "deit_tiny", "tim/deit_tiny", "timm/", "./model.pt", "a.b", "a:b:c", "a-b:c"]
)
def test_an_unknown_form_shows_the_three(source: str) -> None:
    with pytest.raises(EdgekitError) as error:
        families.load(source, Options())
    for form in ("timm/NAME", "transformers/FOLDER_OR_ID", "package.module:factory"):
        assert form in str(error.value)


def test_every_family_is_found_by_its_file() -> None:
    assert {"timm", "transformers", "factory"} <= set(names("families"))


def test_a_checkpoint_and_random_weights_exclude_each_other(tmp_path: Path) -> None:
    options = Options(checkpoint=tmp_path / "w.pt", random_weights=True)
    with pytest.raises(EdgekitError, match="both"):
        families.load("timm/vit_tiny_patch16_224", options)


def test_random_weights_are_the_same_each_time_and_leave_torch_alone(digits_model: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one = families.load(f"timm/{digits_model}", Options(random_weights=True))
    assert torch.equal(torch.rand(1), expected)
    two = families.load(f"timm/{digits_model}", Options(random_weights=True))
    other = two.module.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in one.module.state_dict().items())


def test_importing_families_and_data_loads_nothing_heavy() -> None:
    code = (
        "import sys, edgekit.data, edgekit.data.images, edgekit.data.arrays, edgekit.checkpoint\n"
        "from edgekit.find import names; names('families')\n"
        "heavy = {'torch', 'timm', 'transformers', 'numpy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_torchvision_is_left_alone_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision, "_operators_load", lambda folder: True)
    assert torchvision.repair.__wrapped__() is None


def test_torchvision_can_be_imported_after_the_repair() -> None:
    pytest.importorskip("timm")
    code = "from edgekit.families.torchvision import repair; repair(); import torchvision"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

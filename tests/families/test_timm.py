"""timm models: folders, architectures, their preprocessing and their errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgekit import families
from edgekit.data import open_data
from edgekit.errors import EdgekitError
from edgekit.families import Options, timm
from edgekit.model import Input, Preprocess

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def test_a_folder_gives_its_weights_and_preprocessing(digits_model: Path) -> None:
    model = families.load(f"timm/{digits_model}", Options())
    assert model.source == f"timm/{digits_model}"
    assert model.weights == "checkpoint"
    assert model.inputs == (Input("x", (1, 1, 32, 32)),)
    assert model.outputs == ("logits",)
    assert model.preprocess == Preprocess((32, 32), 35, "bicubic", (0.5,), (0.5,), channels=1)
    assert not model.module.training
    state = model.module.state_dict()
    assert all(torch.equal(state[key], v) for key, v in weights(digits_model).items())
    with torch.inference_mode():
        assert model.module(x=torch.zeros(1, 1, 32, 32)).shape == (1, 10)


def test_a_folder_feeds_on_the_images_it_was_made_for(
    digits_model: Path, digits_folder: Path
) -> None:
    model = families.load(f"timm/{digits_model}", Options())
    sample = next(iter(open_data(digits_folder, model.inputs, model.preprocess)))
    with torch.inference_mode():
        logits = model.module(x=torch.from_numpy(sample["x"])[None])
    assert torch.isfinite(logits).all()


def test_it_can_be_exported(digits_model: Path) -> None:
    graph = families.load(f"timm/{digits_model}", Options()).export()
    assert graph.outputs == ("logits",)


def test_an_architecture_with_arguments_and_a_checkpoint(
    digits_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": weights(digits_model)}, path)
    arguments = {**TINY, "num_classes": 10, "in_chans": 1}
    options = Options(checkpoint=path, arguments=arguments)
    model = families.load("timm/vit_tiny_patch16_224", options)
    assert model.weights == "checkpoint"
    assert model.inputs[0].shape == (1, 1, 32, 32)
    assert model.preprocess is not None
    assert model.preprocess.mean == (0.5,)
    assert torch.equal(model.module.state_dict()["head.bias"], weights(digits_model)["head.bias"])


def test_the_wrong_architecture_lists_the_keys(digits_model: Path) -> None:
    options = Options(checkpoint=digits_model / "model.safetensors", arguments=TINY)
    with pytest.raises(EdgekitError) as error:
        families.load("timm/vit_tiny_patch16_224", options)
    text = str(error.value)
    assert "head.weight (10, 48), model (1000, 48)" in text
    assert "patch_embed.proj.weight (48, 1, 8, 8), model (48, 3, 8, 8)" in text
    partial = Options(options.checkpoint, allow_partial=True, arguments=TINY)
    model = families.load("timm/vit_tiny_patch16_224", partial)
    assert torch.equal(model.module.state_dict()["norm.bias"], weights(digits_model)["norm.bias"])


def test_a_missing_key_is_named(digits_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(digits_model, folder)
    state = weights(folder)
    del state["norm.bias"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(EdgekitError, match=r"1 missing: norm\.bias"):
        families.load(f"timm/{folder}", Options())


def test_a_truncated_folder_is_named(digits_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(digits_model, folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(EdgekitError, match=r"model\.safetensors is truncated"):
        families.load(f"timm/{folder}", Options())
    assert families.load(f"timm/{folder}", Options(random_weights=True)).weights == "random"


def test_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(EdgekitError, match="deit_tiny_patch16_224"):
        families.load("timm/deit_tiny_patch16_225", Options(random_weights=True))


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match=r"not a folder in timm's format"):
        families.load(f"timm/{tmp_path}", Options())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(EdgekitError, match="cannot be made"):
        families.load(f"timm/{tmp_path}", Options(random_weights=True))


def test_without_network_it_says_what_to_pass() -> None:
    with pytest.raises(EdgekitError, match=r"--checkpoint FILE.*--random-weights"):
        families.load("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", Options())


def test_a_pretrained_model_with_another_head_is_refused() -> None:
    with pytest.raises(EdgekitError, match=r"no head of 7 classes"):
        families.load("timm/vit_tiny_patch16_224", Options(arguments={"num_classes": 7}))


def test_a_wrong_argument_is_named() -> None:
    options = Options(random_weights=True, arguments={"wings": 2})
    with pytest.raises(EdgekitError, match="wings"):
        families.load("timm/vit_tiny_patch16_224", options)


def test_inputs_may_be_chosen_where_the_size_is_free() -> None:
    spec = Input("x", (1, 3, 64, 96))
    model = families.load("timm/resnet10t", Options(random_weights=True, inputs=(spec,)))
    assert model.inputs == (spec,)
    assert model.preprocess is None  # timm's crop at this aspect cannot be said in our terms
    for wrong in (Input("y", (1, 3, 64, 64)), Input("x", (1, 4, 64, 64)), Input("x", (1, 9))):
        with pytest.raises(EdgekitError, match=r"cannot take|does not take"):
            families.load("timm/resnet10t", Options(random_weights=True, inputs=(wrong,)))


def test_a_fixed_size_is_not_changed_in_silence(digits_model: Path) -> None:
    options = Options(inputs=(Input("x", (1, 1, 64, 64)),))
    with pytest.raises(EdgekitError, match="64"):
        families.load(f"timm/{digits_model}", options)


@pytest.mark.parametrize(
    ("mode", "size", "resize"),
    [("center", (40, 40), 50), ("squash", (40, 60), (50, 75)), ("border", (40, 40), None)],
)
def test_crop_modes(mode: str, size: tuple[int, int], resize: int | tuple[int, int] | None) -> None:
    config = {
        "input_size": (3, *size),
        "crop_pct": 0.8,
        "crop_mode": mode,
        "interpolation": "bicubic",
        "mean": (0.1, 0.2, 0.3),
        "std": (1,),
    }
    found = timm._preprocess(config, "timm/x")
    if resize is None:
        assert found is None
    else:
        assert found == Preprocess(size, resize, "bicubic", (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))

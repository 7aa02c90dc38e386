"""transformers models: folders of tiny real ones, and every way they can be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from edgekit import families
from edgekit.data.images import load_image
from edgekit.errors import EdgekitError
from edgekit.families import Options, processor
from edgekit.families.torchvision import repair
from edgekit.model import BATCH, Dim, Input, Preprocess

repair()
transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
}
VIT_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": 32, "width": 32},
}


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=5, **SIZES)
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    (folder / processor.FILE).write_text(json.dumps(VIT_PROCESSOR))
    return folder


@pytest.fixture
def copy(vit: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(vit, tmp_path / "vit"))


def write(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_image_classifier(vit: Path) -> None:
    model = families.load(f"transformers/{vit}", Options())
    assert model.weights == "checkpoint"
    assert model.inputs == (Input("pixel_values", (1, 3, 32, 32)),)
    assert model.outputs == ("logits",)
    assert model.preprocess == Preprocess(
        (32, 32), (32, 32), "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    )
    image = torch.rand(1, 3, 32, 32)
    original = transformers.ViTForImageClassification.from_pretrained(vit).eval()
    with torch.inference_mode():
        ours, theirs = model.module(pixel_values=image), original(image).logits
    assert torch.equal(ours[0], theirs)
    assert any(name.startswith("model.vit.") for name, _ in model.module.named_modules())


def test_it_can_be_exported_with_a_dynamic_batch(vit: Path) -> None:
    spec = Input("pixel_values", (BATCH, 3, 32, 32))
    graph = families.load(f"transformers/{vit}", Options(inputs=(spec,))).export()
    assert graph.run({"pixel_values": np.zeros((3, 3, 32, 32), np.float32)})["logits"].shape == (
        3,
        5,
    )


def test_dinov2_without_a_head_gives_features(tmp_path: Path) -> None:
    sizes = {key: SIZES[key] for key in SIZES if key != "intermediate_size"}
    config = transformers.Dinov2Config(image_size=56, patch_size=14, **sizes)
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    bit = {
        **VIT_PROCESSOR,
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 32},
        "do_center_crop": True,
        "crop_size": {"height": 28, "width": 28},
    }
    (tmp_path / processor.FILE).write_text(json.dumps(bit))
    model = families.load(f"transformers/{tmp_path}", Options())
    assert model.outputs == ("last_hidden_state", "pooler_output")
    assert model.inputs[0].shape == (1, 3, 28, 28)  # what its processor makes, not its 56
    assert model.preprocess is not None
    assert (model.preprocess.resize, model.preprocess.size) == (32, (28, 28))
    with torch.inference_mode():
        features, pooled = model.module(pixel_values=torch.rand(1, 3, 28, 28))
    assert (features.shape, pooled.shape) == ((1, 5, 48), (1, 48))


def test_a_text_model_takes_tokens(tmp_path: Path) -> None:
    config = transformers.BertConfig(vocab_size=50, num_labels=3, **SIZES)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    model = families.load(f"transformers/{tmp_path}", Options())
    assert model.inputs == (Input("input_ids", (1, 128), "int64"),)
    assert model.outputs == ("logits",)
    assert model.preprocess is None
    chosen = (Input("input_ids", (1, 16), "int64"), Input("attention_mask", (1, 16), "int64"))
    assert families.load(f"transformers/{tmp_path}", Options(inputs=chosen)).inputs == chosen


def test_a_language_model_keeps_no_cache(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=50, max_position_embeddings=16, num_key_value_heads=3, **SIZES
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = families.load(f"transformers/{tmp_path}", Options())
    assert model.inputs == (Input("input_ids", (1, 16), "int64"),)
    with torch.inference_mode():
        (logits,) = model.module(input_ids=torch.zeros(1, 16, dtype=torch.int64))
    assert logits.shape == (1, 16, 50)


def test_a_state_space_model_of_any_length_and_its_stream(tmp_path: Path) -> None:
    config = transformers.MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path)
    whole = families.load(f"transformers/{tmp_path}", Options())
    assert whole.inputs == (Input("input_ids", (1, Dim("length", 1, 128, 2048)), "int64"),)
    assert whole.traced is not None
    assert whole.states == ()
    chosen = (Input("input_ids", (1, 16), "int64"),)
    stream = families.load(f"transformers/{tmp_path}", Options(mode="stream", inputs=chosen))
    assert stream.inputs == chosen
    assert [state.name for state in stream.states] == ["conv_0", "scan_0"]


def test_an_encoder_of_any_length_is_as_it_was(tmp_path: Path) -> None:
    config = transformers.BertConfig(vocab_size=50, **SIZES)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    ranged = (Input("input_ids", (1, Dim("length", 1, 16, 64)), "int64"),)
    assert families.load(f"transformers/{tmp_path}", Options(inputs=ranged)).traced is None


def test_sharded_and_bin_folders(vit: Path, tmp_path: Path) -> None:
    original = transformers.ViTForImageClassification.from_pretrained(vit)
    original.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    (tmp_path / "bin").mkdir()
    shutil.copy(vit / "config.json", tmp_path / "bin")
    torch.save(original.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    expected = families.load(f"transformers/{vit}", Options()).module.state_dict()
    for kind in ("sharded", "bin"):
        state = families.load(f"transformers/{tmp_path / kind}", Options()).module.state_dict()
        assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_half_precision_checkpoints_run_in_float32(copy: Path) -> None:
    state = {k: v.half() for k, v in load_file(copy / "model.safetensors").items()}
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    write(copy, dtype="float16")
    for options in (Options(), Options(random_weights=True)):
        module = families.load(f"transformers/{copy}", options).module
        assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_keys_that_do_not_fit_are_listed(copy: Path) -> None:
    state = dict(load_file(copy / "model.safetensors"))
    del state["classifier.bias"]
    state["extra"] = torch.ones(1)
    state["classifier.weight"] = torch.ones(3, 48)
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EdgekitError) as error:
        families.load(f"transformers/{copy}", Options())
    text = str(error.value)
    assert "1 missing: classifier.bias" in text
    assert "1 not in the model: extra" in text
    assert "classifier.weight (3, 48), model (5, 48)" in text
    model = families.load(f"transformers/{copy}", Options(allow_partial=True))
    kept = model.module.state_dict()["model.vit.layernorm.weight"]
    assert torch.equal(kept, state["vit.layernorm.weight"])


def test_a_checkpoint_of_another_model_is_refused(vit: Path, digits_model: Path) -> None:
    for partial in (False, True):
        options = Options(digits_model / "model.safetensors", allow_partial=partial)
        with pytest.raises(EdgekitError, match="does not fit ViTForImageClassification"):
            families.load(f"transformers/{vit}", options)


def test_a_truncated_checkpoint_is_named_and_random_weights_need_none(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(EdgekitError, match=r"model\.safetensors is truncated"):
        families.load(f"transformers/{copy}", Options())
    file.unlink()
    with pytest.raises(EdgekitError, match="holds no weights"):
        families.load(f"transformers/{copy}", Options())
    assert families.load(f"transformers/{copy}", Options(random_weights=True)).weights == "random"


def test_set_changes_the_configuration_and_nothing_else(vit: Path) -> None:
    arguments = {"num_labels": 7, "attn_implementation": "eager"}
    options = Options(random_weights=True, arguments=arguments)
    model = families.load(f"transformers/{vit}", options)
    with torch.inference_mode():
        assert model.module(pixel_values=torch.zeros(1, 3, 32, 32))[0].shape == (1, 7)
    with pytest.raises(EdgekitError, match="no setting wings"):
        families.load(f"transformers/{vit}", Options(arguments={"wings": 2}))


def test_code_of_a_checkpoint_is_never_run(copy: Path, tmp_path: Path) -> None:
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    write(copy, architectures=["EvilModel"], auto_map={"AutoModel": "evil.EvilModel"})
    with pytest.raises(EdgekitError, match="no class EvilModel"):
        families.load(f"transformers/{copy}", Options())
    write(copy, model_type="evil", auto_map={"AutoConfig": "evil.EvilConfig"})
    with pytest.raises(EdgekitError, match="never code from a checkpoint"):
        families.load(f"transformers/{copy}", Options())
    assert not (tmp_path / "mark").exists()


def test_a_broken_or_absent_configuration(copy: Path, tmp_path: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(EdgekitError, match="configuration of transformers/"):
        families.load(f"transformers/{copy}", Options())
    with pytest.raises(EdgekitError, match="not a model's folder"):
        families.load(f"transformers/{tmp_path}", Options())
    with pytest.raises(EdgekitError, match="cannot be had from the Hugging Face hub"):
        families.load("transformers/nobody/nothing", Options())


def test_inputs_of_another_size_do_not_use_the_processor(vit: Path, copy: Path) -> None:
    (copy / processor.FILE).unlink()
    assert families.load(f"transformers/{copy}", Options()).preprocess is None
    wrong = Options(inputs=(Input("pixel_values", (1, 3, 64, 64)),))
    with pytest.raises(EdgekitError, match=r"does not run on pixel_values:1x3x64x64"):
        families.load(f"transformers/{vit}", wrong)


# preprocessor_config.json


def described(folder: Path, **changes: Any) -> Preprocess | None:
    content = {k: v for k, v in {**VIT_PROCESSOR, **changes}.items() if v is not None}
    (folder / processor.FILE).write_text(json.dumps(content))
    return processor.read(folder)


def test_old_forms_of_sizes(tmp_path: Path) -> None:
    square = described(tmp_path, size=40)
    crop = {"do_center_crop": True, "crop_size": 32}
    clip = described(tmp_path, size=40, image_processor_type="CLIPImageProcessor", **crop)
    assert square is not None
    assert clip is not None
    assert (square.resize, square.size) == ((40, 40), (40, 40))
    assert (clip.resize, clip.size) == (40, (32, 32))


def test_scales_other_than_255_are_kept(tmp_path: Path) -> None:
    found = described(tmp_path, rescale_factor=1 / 510)
    raw = described(tmp_path, do_rescale=False, do_normalize=False)
    assert found is not None
    assert raw is not None
    assert found.mean == pytest.approx((1, 1, 1))
    assert found.std == pytest.approx((1, 1, 1))
    assert (raw.mean, raw.std) == ((0, 0, 0), pytest.approx((1 / 255,) * 3))


@pytest.mark.parametrize(
    "changes",
    [
        {"image_processor_type": "LevitImageProcessor"},
        {"image_processor_type": None},
        {"do_resize": False},
        {"resample": 5},
        {"do_pad": True},
        {"image_mean": None},
        {"size": {"shortest_edge": 40}},
        {"size": {"longest_edge": 40}},
        {"do_center_crop": True},
    ],
)
def test_what_cannot_be_said_in_our_terms_is_not_guessed(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert described(tmp_path) is not None
    assert described(tmp_path, **changes) is None


def test_a_broken_preprocessor_file_is_named(tmp_path: Path) -> None:
    (tmp_path / processor.FILE).write_text("[1, 2")
    with pytest.raises(EdgekitError, match=r"preprocessor_config\.json is not a JSON object"):
        processor.read(tmp_path)


@pytest.mark.parametrize("size", [(50, 40), (40, 61)])
def test_images_equal_transformers_own(tmp_path: Path, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    preprocess = described(tmp_path)
    assert preprocess is not None
    theirs = transformers.ViTImageProcessorPil.from_pretrained(tmp_path)(Image.fromarray(pixels))
    ours = load_image(tmp_path / "a.png", preprocess)
    np.testing.assert_allclose(ours, np.asarray(theirs["pixel_values"][0]), atol=1e-6)

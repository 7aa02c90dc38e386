"""MergeStreams: dual-stream blocks on the image branch's weights alone."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit import families
from edgekit.compress import Context, apply, measure, parse, structure
from edgekit.compress.drop_layers import DropLayers
from edgekit.compress.merge_streams import MergeStreams
from edgekit.compress.modules import shared_stream
from edgekit.errors import EdgekitError
from edgekit.families import Options
from edgekit.families.torchvision import repair
from edgekit.model import Model
from edgekit.work import export

sys.path.insert(0, str(Path(__file__).parents[1] / "families" / "diffusion"))

import small

NAMES = ("qwen_image", "flux", "sd3")
#: Single-precision rotary embeddings, which diffusers has in Qwen-Image and Flux.
EXACT = {"qwen_image": 1e-6, "flux": 1e-6, "sd3": 1e-12}


def load(name, folder, **changes):
    home = folder / name
    sizes = small.SMALL[name][1]
    if not home.exists():
        home, sizes = small.write(name, folder)
    arguments = {**sizes, **({"dual_attention_layers": []} if name == "sd3" else {}), **changes}
    options = Options(random_weights=True, arguments=arguments)
    return families.load(f"diffusers/{home}", options)


def call(model, **more):
    generator = torch.Generator().manual_seed(0)
    weight = next(model.module.parameters())
    inputs = {
        spec.name: torch.rand(2, *spec.concrete()[1:], generator=generator).to(weight.dtype)
        for spec in model.inputs
    }
    with torch.no_grad():
        return model.module(**inputs, **more)


def tie(block):
    """Give a dual block's text branch the weights of its image branch."""
    parts = shared_stream.BRANCHES[type(block).__name__]
    names = {
        "QwenImageTransformerBlock": {"modulation": "txt_mod.1", "mlp": "txt_mlp"},
    }.get(type(block).__name__, {"modulation": "norm1_context.linear", "mlp": "ff_context"})
    attn = block.attn
    pairs = [
        (attn.add_q_proj, attn.to_q), (attn.add_k_proj, attn.to_k), (attn.add_v_proj, attn.to_v),
        (getattr(attn, "norm_added_q", None), attn.norm_q),
        (getattr(attn, "norm_added_k", None), attn.norm_k),
    ]  # fmt: skip
    if getattr(block, "context_pre_only", False):
        # The text's norm takes (scale, shift), the image's gives (shift, scale, ...).
        image = block.norm1.linear
        for name in ("weight", "bias"):
            shift, scale, *_ = getattr(image, name).chunk(6)
            getattr(block.norm1_context.linear, name).data = torch.cat([scale, shift]).detach()
    else:
        pairs.append((attn.to_add_out, attn.to_out[0]))
        for part, path in names.items():
            pairs.append((block.get_submodule(path), block.get_submodule(parts[part])))
    for text, image in pairs:
        if text is not None:
            text.load_state_dict(image.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_dual_block_with_both_branches_alike(name, tmp_path):
    model = load(name, tmp_path)
    model.module.double()
    for block in model.module.model.transformer_blocks:
        tie(block)
    made = apply(MergeStreams(keep=0), model, Context())
    expected, actual = call(model), call(made)
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, expected, atol=EXACT[name], rtol=EXACT[name])


def test_padded_text_and_two_conditionings_are_as_in_the_dual_block(tmp_path):
    model = load("qwen_image", tmp_path, zero_cond_t=True)
    for block in model.module.model.transformer_blocks:
        tie(block)
    made = apply(MergeStreams(keep=0), model, Context())
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[:, 5:] = False
    expected = call(model, encoder_hidden_states_mask=mask)
    torch.testing.assert_close(call(made, encoder_hidden_states_mask=mask), expected)
    assert not torch.allclose(call(made), expected)
    index = torch.tensor([[0, 1, 1, 0]]).repeat(2, 1)
    block, merged = (each.module.model.transformer_blocks[0] for each in (model, made))
    width = model.module.model.inner_dim
    tokens = {"hidden_states": torch.rand(2, 4, width), "temb": torch.rand(4, width)}
    tokens["encoder_hidden_states"] = torch.rand(2, 3, width)
    arguments = {**tokens, "encoder_hidden_states_mask": None, "modulate_index": index}
    with torch.no_grad():
        text, image = block(**arguments)
        own_text, own_image = merged(**{**arguments, "temb": tokens["temb"]})
    torch.testing.assert_close(own_image, image)
    torch.testing.assert_close(own_text, text)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_blocks_stay_and_the_text_branch_of_the_others_is_gone(name, tmp_path):
    model = load(name, tmp_path, num_layers=3)
    made = apply(MergeStreams(keep=1), model, Context())
    kinds = [type(block).__module__ for block in made.module.model.transformer_blocks]
    assert [kind.startswith("diffusers") for kind in kinds] == [True, False, False]
    for before, after in zip(
        model.module.model.transformer_blocks, made.module.model.transformer_blocks, strict=True
    ):
        if isinstance(after, shared_stream.SharedStream):
            # A branch has 18 squares of the width: 6 of modulation, 4 of attention, 8 of the MLP.
            # The text branch of SD3's last block has 5: 2 of modulation, 3 of attention.
            share = measure.parameters(after) / measure.parameters(before)
            assert share == pytest.approx(18 / 23 if after.last else 0.5, abs=0.01)
    assert call(made).shape == call(model).shape
    ratio = apply(MergeStreams(ratio=0.67), model, Context())
    assert torch.equal(call(ratio), call(made))


@pytest.mark.parametrize("name", NAMES)
def test_the_result_is_saved_and_loaded(name, tmp_path):
    """Also where a block was dropped before, and the layers of others averaged."""
    model = load(name, tmp_path, num_layers=4)
    dropped = DropLayers(keep=(0, 2, 3), average=True, stack="*.transformer_blocks")
    made = apply(MergeStreams(keep=1), apply(dropped, model, Context()), Context())
    described = json.loads(json.dumps(structure.describe(model.module, made.module)))
    fresh = load(name, tmp_path, num_layers=4)
    restored = structure.restore(fresh.module, described)
    state = {key: value.clone() for key, value in structure.tensors(made.module).items()}
    structure.load(restored, state, "here")
    assert torch.equal(call(dataclasses.replace(fresh, module=restored.eval())), call(made))


@pytest.mark.parametrize("name", NAMES)
def test_it_exports(name, tmp_path):
    made = apply(MergeStreams(keep=1), load(name, tmp_path), Context())
    generator = np.random.default_rng(0)
    inputs = {
        spec.name: generator.random(spec.concrete(), dtype=np.float32) for spec in made.inputs
    }
    with torch.no_grad():
        expected = made.module(**{key: torch.from_numpy(value) for key, value in inputs.items()})
    actual = export(made).run(inputs)["sample"]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_qwen_image_at_full_size_has_the_papers_parameters():
    """20.4 billion, half of the blocks dropped 10.2, and about 6 with 25 of the rest merged."""
    repair()
    from diffusers import QwenImageTransformer2DModel

    from edgekit.families.diffusion import qwen_image

    with torch.device("meta"):
        own = QwenImageTransformer2DModel().eval()
    sizes = qwen_image.sizes(own.config)
    inputs = qwen_image.inputs(own.config, sizes)
    model = Model(qwen_image.Call(own, sizes), inputs, qwen_image.OUTPUTS, "qwen-image")
    half = apply(DropLayers(keep=tuple(range(0, 60, 2)), average=True), model, Context())
    merged = apply(MergeStreams(keep=5), half, Context())
    billions = [measure.parameters(each.module) / 1e9 for each in (model, half, merged)]
    assert billions == pytest.approx([20.4, 10.2, 6.0], abs=0.05)
    assert next(merged.module.parameters()).is_meta


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "one of keep and ratio"),
        ({"keep": 1, "ratio": 0.5}, "one of keep and ratio"),
        ({"keep": -1}, "keep is -1"),
        ({"ratio": 1.5}, "ratio is 1.5"),
    ],
)
def test_options_that_make_no_sense(options, text):
    with pytest.raises(EdgekitError, match=text):
        MergeStreams(**options)


@pytest.mark.parametrize("options", [{"keep": 2}, {"ratio": 0.1}])
def test_nothing_left_to_merge(options, tmp_path):
    with pytest.raises(EdgekitError, match="leaves nothing to merge"):
        apply(MergeStreams(**options), load("flux", tmp_path), Context())


def test_a_second_attention_of_the_image_is_refused(tmp_path):
    """Stable Diffusion 3.5 has one in its first blocks, which must stay as they are."""
    model = load("sd3", tmp_path, num_layers=3, dual_attention_layers=[0])
    with pytest.raises(EdgekitError, match="second attention") as caught:
        apply(MergeStreams(keep=0), model, Context())
    assert "keep=1" in caught.value.fix
    assert call(apply(MergeStreams(keep=1), model, Context())).shape == (2, 4, 8, 8)


def test_a_model_of_one_stream_is_refused(digits_model):
    model = families.load(f"timm/{digits_model}", Options())
    with pytest.raises(EdgekitError, match="no dual-stream block"):
        apply(MergeStreams(keep=0), model, Context())


def test_adapters_of_attention_are_not_passed_over(tmp_path):
    made = apply(MergeStreams(keep=0), load("flux", tmp_path), Context())
    block = made.module.model.transformer_blocks[0]
    tokens = torch.rand(1, 4, 64)
    with pytest.raises(ValueError, match="ip_hidden_states"):
        block(tokens, tokens, tokens[:, 0], None, {"ip_hidden_states": [tokens]})


def test_it_is_read_from_a_flag():
    assert parse("merge_streams:keep=5") == MergeStreams(keep=5)

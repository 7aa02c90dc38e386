"""Structure: what passes change is described in JSON, and made again from it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from edgekit import families
from edgekit.compress import structure
from edgekit.errors import EdgekitError
from edgekit.families import Options


@pytest.fixture
def model(digits_model):
    return families.load(f"timm/{digits_model}", Options())


def again(model, made, digits_model):
    """The made module, from its description and tensors alone."""
    described = json.loads(json.dumps(structure.describe(model.module, made.module)))
    fresh = families.load(f"timm/{digits_model}", Options(random_weights=True)).module
    restored = structure.restore(fresh, described)
    state = {name: value.clone() for name, value in structure.tensors(made.module).items()}
    structure.load(restored, state, "here")
    return restored.eval()


def same(first, second):
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        return torch.equal(first(x), second(x))


def narrowed(module):
    """The first block with a head less and a narrower MLP, on the weights that are left."""
    block = module.blocks[0]
    kept = torch.cat([torch.arange(32) + 48 * third for third in range(3)])
    block.attn.qkv.weight = nn.Parameter(block.attn.qkv.weight[kept])
    block.attn.qkv.bias = nn.Parameter(block.attn.qkv.bias[kept])
    block.attn.proj.weight = nn.Parameter(block.attn.proj.weight[:, :32])
    block.attn.num_heads, block.attn.attn_dim = 2, 32
    block.mlp.fc1.weight = nn.Parameter(block.mlp.fc1.weight[:100])
    block.mlp.fc1.bias = nn.Parameter(block.mlp.fc1.bias[:100])
    block.mlp.fc2.weight = nn.Parameter(block.mlp.fc2.weight[:, :100])
    block.mlp.fc1.out_features = block.mlp.fc2.in_features = 100


def without_a_layer(module):
    del module.blocks[0]


def swapped_layers(module):
    first, second = module.blocks
    module.blocks[0], module.blocks[1] = second, first


def longer(module):
    module.blocks.append(module.blocks[0])


def two_linears(module):
    old = module.blocks[1].mlp.fc1
    pair = nn.Sequential(nn.Linear(48, 8, bias=False), nn.Linear(8, old.out_features))
    module.blocks[1].mlp.fc1 = pair


def no_bias_and_no_norm(module):
    module.blocks[0].mlp.fc2.register_parameter("bias", None)
    module.blocks[1].norm1 = nn.Identity()


def a_new_bias(module):
    module.blocks[0].mlp.fc2.register_parameter("bias", None)
    module.patch_embed.proj.bias = nn.Parameter(torch.randn(48))


@pytest.mark.parametrize(
    "change",
    [
        narrowed, without_a_layer, swapped_layers, longer, two_linears, no_bias_and_no_norm,
        a_new_bias,
    ],
)  # fmt: skip
def test_what_was_changed_is_made_again(change, model, digits_model):
    made = structure.copied(model)
    change(made.module)
    assert not same(made.module, model.module)
    assert same(made.module, again(model, made, digits_model))


def test_several_changes_and_passes(model, digits_model):
    made = structure.copied(model)
    narrowed(made.module)
    second = structure.copied(made)
    swapped_layers(second.module)
    two_linears(second.module)
    assert same(second.module, again(model, second, digits_model))


def test_a_copy_leaves_the_model_as_it_is(model):
    made = structure.copied(model)
    before = {name: value.clone() for name, value in structure.tensors(model.module).items()}
    narrowed(made.module)
    for name, value in structure.tensors(model.module).items():
        assert torch.equal(value, before[name])
    assert structure.origin(model.module.blocks[0]) is None
    assert structure.origin(made.module.blocks[1]) == "blocks.1"


def test_nothing_changed_is_nothing_described(model):
    found = structure.describe(model.module, structure.copied(model).module)
    assert not any(found.values())


def test_a_new_module_of_another_kind_cannot_be_saved(model):
    made = structure.copied(model)
    made.module.norm = nn.GroupNorm(1, 48)
    with pytest.raises(EdgekitError, match="GroupNorm"):
        structure.describe(model.module, made.module)


@pytest.mark.parametrize("kind", ["os", "torch.Bilinear", "low.rank"])
def test_a_strangers_description_makes_nothing_else(kind, model):
    described = {
        "modules": {"norm": {"kind": kind, "arguments": {}}},
        "removed": [], "attributes": {}, "without": [], "with": [],
    }  # fmt: skip
    with pytest.raises(EdgekitError, match="does not fit"):
        structure.restore(model.module, described)


def test_tensors_must_fit(model, digits_model):
    state = structure.tensors(model.module)
    state.pop("norm.weight")
    state["more"] = torch.zeros(1)
    with pytest.raises(EdgekitError) as caught:
        structure.load(model.module, state, "w.safetensors")
    assert "norm.weight" in caught.value.why
    assert "more" in caught.value.why

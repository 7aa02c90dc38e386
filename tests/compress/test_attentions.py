"""attentions: what a module computes decides whether it is plain self-attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from edgekit import families
from edgekit.compress import attentions
from edgekit.errors import EdgekitError
from edgekit.families import Options

TINY = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 32}


def load(name, **arguments):
    options = Options(random_weights=True, arguments={**TINY, **arguments})
    return families.load(f"timm/{name}", options)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"qk_norm": True, "scale_attn_norm": True}),
        ("deit_tiny_distilled_patch16_224", {}),
    ],
    ids=["vit", "norms", "deit"],
)
def test_parts_give_what_the_module_gives(name, arguments):
    model = load(name, **arguments)
    found = attentions.find(model, ())
    assert list(found.chosen) == ["blocks.0.attn", "blocks.1.attn"]
    assert not found.left
    x = torch.randn(2, 7, 48)
    for parts in found.chosen.values():
        q, k, v = parts.split(x)
        assert q.shape == k.shape == v.shape == (2, 3, 7, 16)
        given = parts.joined(F.scaled_dot_product_attention(q, k, v))
        assert torch.allclose(given, parts.module(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("beit_base_patch16_224", {}, "more than softmax"),
        ("vit_base_patch16_rope_reg1_gap_256", {}, "rotation"),
        ("vit_tiny_patch16_224", {"attn_layer": "diff"}, "more than softmax"),
    ],
    ids=["biased", "rotary", "differential"],
)
def test_others_are_left_with_a_reason(name, arguments, why):
    found = attentions.find(load(name, **arguments), ())
    assert not found.chosen
    assert any(why in each for each in found.left)


def test_separate_projections_are_left():
    arguments = {"img_scale": [1.0, 0.75], "patch_size": [8, 12], "embed_dim": [24, 32],
                 "depth": [[1, 1, 1]], "num_heads": [2, 2], "mlp_ratio": [2, 2, 1]}  # fmt: skip
    found = attentions.find(load("crossvit_tiny_240", **arguments), ())
    assert len(found.chosen) == 2
    assert any("not one linear's" in why for why in found.left)


def test_exclude():
    model = load("vit_tiny_patch16_224")
    assert list(attentions.find(model, ["blocks.0"]).chosen) == ["blocks.1.attn"]
    with pytest.raises(EdgekitError, match="matches no layer"):
        attentions.find(model, ["blck*"])

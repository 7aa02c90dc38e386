"""Fuse: exact where it must be, and better than the plain mean of two trained models."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from edgekit import families
from edgekit.compress import Context, apply, parse, structure
from edgekit.compress.fuse import Fuse
from edgekit.data import open_data
from edgekit.errors import EdgekitError
from edgekit.families import Options, torchvision
from edgekit.model import Input, Model

torchvision.repair()
SMALL = {
    "img_size": 16,
    "patch_size": 8,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
}


def made(seed=0, name="vit_tiny_patch16_224", **arguments):
    """A model whose every part matters: no gain is 1, no offset 0."""
    import timm

    torch.manual_seed(seed)
    module = timm.create_model(name, **{**SMALL, **arguments}).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else nn.init.uniform_(
            parameter, 0.3, 1.0
        )
    side = module.patch_embed.img_size[0]
    return Model(module, (Input("x", (1, 1, side, side)),), ("logits",), f"timm/seed-{seed}")


def saved(model, folder):
    path = folder / "other.safetensors"
    save_file({n: t.contiguous() for n, t in model.module.state_dict().items()}, path)
    return path


def context(model, count=40):
    rng = np.random.default_rng(0)
    shape = (count, *model.inputs[0].shape[1:])
    return Context(data=open_data(rng.standard_normal(shape, np.float32), model.inputs, None))


def double(model):
    """The same in float64."""
    module = structure.copied(model).module.double()
    return dataclasses.replace(model, module=module)


def scores(model, count=8):
    torch.manual_seed(1)
    x = torch.randn(count, *model.inputs[0].shape[1:])
    with torch.no_grad():
        return model.module(x.to(next(model.module.parameters()).dtype)).double()


def near(first, second, limit=1e-9):
    assert (first - second).abs().max() <= limit * second.abs().max()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("arguments", [{}, {"qkv_bias": False, "init_values": 0.5}])
def test_all_of_one_parent_is_that_parent(name, arguments, tmp_path):
    """In float64: neither the common form nor carrying units over changes what a model does."""
    one, two = (double(made(seed, name, **arguments)) for seed in (0, 1))
    path = saved(one, tmp_path)
    for basis in ("rotation", "units"):
        step = Fuse(checkpoint=path, basis=basis, weight=1.0)
        near(scores(apply(step, two, context(two))), scores(one))
    near(scores(apply(Fuse(checkpoint=path, weight=0.0), two, context(two))), scores(two))


def test_average_pooling(tmp_path):
    one, two = (double(made(seed, global_pool="avg", class_token=False)) for seed in (0, 1))
    step = Fuse(checkpoint=saved(one, tmp_path), weight=1.0)
    near(scores(apply(step, two, context(two))), scores(one))


def shuffled(model):
    """The same function with its units in another order, and its heads."""
    other = structure.copied(model)
    torch.manual_seed(2)
    for block in other.module.blocks:
        order = torch.randperm(block.mlp.fc1.out_features)
        block.mlp.fc1.weight.data = block.mlp.fc1.weight.data[order]
        block.mlp.fc1.bias.data = block.mlp.fc1.bias.data[order]
        block.mlp.fc2.weight.data = block.mlp.fc2.weight.data[:, order]
        heads = torch.arange(24).reshape(3, 8)[torch.tensor([2, 0, 1])].flatten()
        thirds = torch.cat([heads, heads + 24, heads + 48])
        block.attn.qkv.weight.data = block.attn.qkv.weight.data[thirds]
        block.attn.qkv.bias.data = block.attn.qkv.bias.data[thirds]
        block.attn.proj.weight.data = block.attn.proj.weight.data[:, heads]
    return other


@pytest.mark.parametrize("basis", ["rotation", "units"])
def test_a_shuffled_twin_is_recognised(basis, tmp_path):
    """Where both do the same in another order, the mean is what both do; a plain mean is not."""
    model = double(made())
    twin = shuffled(model)
    near(scores(twin), scores(model))
    step = Fuse(checkpoint=saved(twin, tmp_path), basis=basis)
    near(scores(apply(step, model, context(model))), scores(model), 1e-6)
    plain = structure.copied(model)
    with torch.no_grad():
        for first, second in zip(plain.module.parameters(), twin.module.parameters(), strict=True):
            first.copy_((first + second) / 2)
    assert (scores(plain) - scores(model)).abs().max() > 0.1 * scores(model).abs().max()


@pytest.mark.parametrize(
    ("basis", "solver"),
    [("rotation", "exact"), ("units", "exact"), ("units", "sinkhorn")],
)
@pytest.mark.parametrize(
    "wider", [{"embed_dim": 48, "num_heads": 6}, {"embed_dim": 48}, {"mlp_ratio": 6}]
)
def test_a_wider_parent_gives_a_model_of_the_narrower_size(basis, solver, wider, tmp_path):
    import timm

    wide, model = made(1, **wider), made()
    folder = tmp_path / "wide"
    timm.models.save_for_hf(
        wide.module, folder, safe_serialization=True, model_args={**SMALL, **wider}
    )
    step = Fuse(other=f"timm/{folder}", basis=basis, solver=solver, samples=16)
    fused = apply(step, model, context(model))
    shapes = [[tuple(p.shape) for p in m.module.parameters()] for m in (fused, model)]
    assert shapes[0] == shapes[1]
    assert scores(fused).isfinite().all()


def test_twice_as_many_equal_units_are_merged_without_loss(tmp_path):
    """An MLP whose every unit is there twice does what the one with each unit once does."""
    import timm

    model = made()
    wide = made(mlp_ratio=8)
    wide.module.load_state_dict(
        {
            name: torch.cat([value] * 2) if "fc1" in name
            else torch.cat([value, value], 1) / 2 if name.endswith("fc2.weight")
            else value
            for name, value in model.module.state_dict().items()
        }
    )  # fmt: skip
    near(scores(wide), scores(model), 1e-4)
    folder = tmp_path / "wide"
    arguments = {**SMALL, "mlp_ratio": 8}
    timm.models.save_for_hf(wide.module, folder, safe_serialization=True, model_args=arguments)
    for weight in (0.5, 1.0):
        step = Fuse(other=f"timm/{folder}", weight=weight)
        near(scores(apply(step, model, context(model))), scores(model), 1e-3)


@pytest.fixture(scope="module")
def digits():
    """Real digits as 16x16 images: to learn from, and to judge with."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = F.interpolate(torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 8 - 1, scale_factor=2)
    return x, torch.from_numpy(labels)


def trained(seed, digits):
    import timm

    torch.manual_seed(seed)
    x, y = digits
    module = timm.create_model("vit_tiny_patch16_224", **SMALL, weight_init="")
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(150):
        chosen = torch.randint(0, 1400, (64,))
        loss = F.cross_entropy(module(x[chosen]), y[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Model(module.eval(), (Input("x", (1, 1, 16, 16)),), ("logits",), f"timm/{seed}")


def test_better_than_the_plain_mean_of_two_trained_models(digits, tmp_path):
    x, y = digits
    one, two = trained(0, digits), trained(1, digits)
    data = Context(data=open_data(x[:1400].numpy(), two.inputs, None))
    fused = apply(Fuse(checkpoint=saved(one, tmp_path)), two, data)
    plain = structure.copied(two)
    with torch.no_grad():
        for first, second in zip(plain.module.parameters(), one.module.parameters(), strict=True):
            first.copy_((first + second) / 2)

        def right(model):
            return float((model.module(x[1400:]).argmax(1) == y[1400:]).float().mean())

        parents = min(right(one), right(two))
        assert parents > 0.8
        assert right(fused) > right(plain)


@pytest.mark.parametrize("arguments", [{}, {"qkv_bias": False, "init_values": 0.5}])
def test_the_result_is_made_again_from_its_description(arguments, tmp_path):
    one, model = made(1, **arguments), made(**arguments)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    fused = apply(Fuse(checkpoint=saved(one, tmp_path)), model, context(model))
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name])
    described = json.loads(json.dumps(structure.describe(model.module, fused.module)))
    fresh = structure.restore(made(2, **arguments).module, described)
    state = {name: value.clone() for name, value in structure.tensors(fused.module).items()}
    structure.load(fresh, state, "here")
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(x), fused.module(x))


def test_of_another_structure(tmp_path):
    import timm

    model = made()
    folder = tmp_path / "deep"
    deep = made(depth=3, num_classes=7)
    arguments = {**SMALL, "depth": 3, "num_classes": 7}
    timm.models.save_for_hf(deep.module, folder, safe_serialization=True, model_args=arguments)
    with pytest.raises(EdgekitError) as caught:
        apply(Fuse(other=f"timm/{folder}"), model, context(model))
    assert "blocks: 3 and 2" in str(caught.value)
    assert "classes: (7,) and (10,)" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"qk_norm": True}, "attn.q_norm"),
        ({"pre_norm": True}, "norm_pre"),
        ({"num_classes": 0}, "no head"),
    ],
)
def test_a_vit_with_other_parts(arguments, named):
    model = made(**arguments)
    with pytest.raises(EdgekitError, match=named):
        apply(Fuse(other="timm/x"), model, context(model))


def test_another_architecture():
    model = families.load(
        "timm/resnet18", Options(random_weights=True, inputs=(Input("x", (1, 3, 32, 32)),))
    )
    with pytest.raises(EdgekitError, match="ResNet") as caught:
        apply(Fuse(other="timm/x"), model, context(model, 2))
    assert "VisionTransformer" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("fuse", "no other model"),
        ("fuse:other=timm/x,weight=1.5", "weight is 1.5"),
        ("fuse:other=timm/x,regularisation=0", "regularisation is 0"),
        ("fuse:other=timm/x,samples=1", "samples is 1"),
        ("fuse:other=timm/x,basis=wrong", "basis"),
    ],
)
def test_options_out_of_range(text, named):
    with pytest.raises(EdgekitError, match=named):
        parse(text)


def test_without_data():
    with pytest.raises(EdgekitError, match="no data"):
        apply(Fuse(other="timm/x"), made(), Context())

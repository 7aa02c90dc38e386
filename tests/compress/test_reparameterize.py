"""Reparameterize: the same function in fewer layers, for any block that is one by its function."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import families, work
from edgekit.compress import Context, apply, parse, structure
from edgekit.compress.reparameterize import Reparameterize
from edgekit.errors import EdgekitError
from edgekit.families import Options, torchvision
from edgekit.find import find
from edgekit.model import Input, Model
from edgekit.targets import load as target

torchvision.repair()
BATCH_NORMS = nn.modules.batchnorm._BatchNorm


def seeded(module):
    """Statistics and gains as after training, so that a norm that is left out is missed."""
    torch.manual_seed(0)
    for each in module.modules():
        if isinstance(each, BATCH_NORMS):
            nn.init.normal_(each.running_mean, std=0.3)
            nn.init.uniform_(each.running_var, 0.5, 1.5)
            nn.init.uniform_(each.weight, 0.5, 1.5)
            nn.init.normal_(each.bias, std=0.3)
    return module.eval()


class Wrapped(nn.Module):
    """A block in float64."""

    def __init__(self, block):
        super().__init__()
        self.block = block.double()

    def forward(self, x):
        return self.block(x.double())


def model_of(block, *shape):
    module = Wrapped(seeded(block))
    return Model(module, (Input("x", (1, *shape)),), ("y",), "block")


def layers(module):
    return [m for m in module.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear))]


def norms(module):
    return [m for m in module.modules() if isinstance(m, BATCH_NORMS)]


def folded(model):
    """The model after the pass, its outputs proven equal in float64."""
    made = apply(Reparameterize(), model, Context())
    x = torch.randn(3, *model.inputs[0].shape[1:])
    with torch.no_grad():
        before, after = model.module(x), made.module(x)
    assert (before - after).abs().max() <= 1e-10 * before.abs().max()
    return made


def branch(inputs, outputs, kernel, groups=1, stride=1, dilation=1):
    padding = dilation * (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Branches(nn.Module):
    """Parallel convolutions of several kernels and groups, an identity, and an activation: the
    form of FMViT's multi-group block, DBB, RepVGG and the like.
    """

    def __init__(self, *branches, identity=False, act=None):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.skip = nn.BatchNorm2d(8) if identity else None
        self.act = act or nn.Identity()

    def forward(self, x):
        total = sum(each(x) for each in self.branches)
        return self.act(total if self.skip is None else total + self.skip(x))


class Scaled(nn.Module):
    """A residual connection with a layer scale, and a subtraction, as in FastViT's RepMixer."""

    def __init__(self):
        super().__init__()
        self.mixer, self.norm = branch(8, 8, 3, groups=8), nn.BatchNorm2d(8)
        self.gamma = nn.Parameter(torch.rand(8))

    def forward(self, x):
        return x + (self.mixer(x) - self.norm(x)) * self.gamma.view(1, -1, 1, 1)


def timm_blocks():
    from timm.models import byobnet, fastvit, levit, repvit

    return {
        "MobileOne": (byobnet.MobileOneBlock(8, 8, num_conv_branches=3), 1),
        "RepVGG": (byobnet.RepVggBlock(8, 8), 1),
        "FastViT's MobileOne, strided": (fastvit.MobileOneBlock(8, 16, 3, stride=2), 1),
        "RepMixer": (fastvit.RepMixer(8, layer_scale_init_value=0.3), 1),
        "large kernel": (fastvit.ReparamLargeKernelConv(8, 8, 7, 1, 1, small_kernel=3), 1),
        "RepViT": (repvit.RepVggDw(8, 3), 1),
        "RepViT legacy": (repvit.RepVggDw(8, 3, legacy=True), 1),
        "LevIT": (levit.ConvNorm(8, 8, 3, padding=1), 1),
    }


OWN = {
    "groups and kernels": (
        Branches(branch(8, 8, 5, 2), branch(8, 8, 3, 4), branch(8, 8, 1, 2), identity=True), 1
    ),
    "an activation after": (Branches(branch(8, 8, 3), branch(8, 8, 1), act=nn.GELU()), 1),
    "strided": (Branches(branch(8, 16, 3, stride=2), branch(8, 16, 1, stride=2)), 1),
    "dilated": (Branches(branch(8, 8, 5), branch(8, 8, 3, dilation=2)), 1),
    "scaled residual": (Scaled(), 1),
    "norm before a layer": (nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)), 1),
    "inside an activation": (nn.Sequential(nn.ReLU(), Scaled(), nn.ReLU(), branch(8, 8, 3)), 2),
}  # fmt: skip


@pytest.mark.parametrize(
    ("block", "count"),
    [pytest.param(*v, id=k) for k, v in {**OWN, **timm_blocks()}.items()],
)
def test_a_block_becomes_one_layer(block, count):
    model = model_of(block, 8, 9, 9)
    made = folded(model)
    assert len(layers(made.module)) == count
    assert not norms(made.module)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(lambda: nn.Sequential(nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6)), id="a"),
        pytest.param(lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 6)), id="b"),
    ],
)
def test_norms_of_linear_layers(block):
    made = folded(model_of(block(), 8))
    assert not norms(made.module)


def test_a_norm_of_tokens_is_not_one_of_features():
    """A batch norm's channels are the second axis, here the tokens."""
    block = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(5))
    with pytest.raises(EdgekitError, match="nothing to reparameterize"):
        apply(Reparameterize(), model_of(block, 5, 8), Context())


def test_levits_linear_norm_keeps_its_tokens():
    from timm.models.levit import LinearNorm

    made = folded(model_of(LinearNorm(8, 6), 5, 8))
    assert not norms(made.module)


def test_zeros_around_an_image_are_not_shifted_twice():
    """A norm before a padded convolution cannot go into it."""
    block = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
    made = folded(model_of(block, 8, 9, 9))
    assert len(norms(made.module)) == 1


class Late(nn.Module):
    """Layers that the parent calls; one of them twice, one whose output is read twice."""

    def __init__(self):
        super().__init__()
        for name in ("one", "two", "three"):
            setattr(self, name, nn.Conv2d(8, 8, 3, padding=1))
            setattr(self, f"bn_{name}", nn.BatchNorm2d(8))
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.act(self.bn_one(self.one(x)))
        twice = self.bn_two(self.two(self.act(self.two(x))))
        read = self.three(x)
        return self.act(twice) + self.bn_three(read) * self.act(read)


def test_only_a_norm_for_a_layer_alone_is_folded():
    made = folded(model_of(Late(), 8, 6, 6))
    kept = [name for name, m in made.module.named_modules() if isinstance(m, BATCH_NORMS)]
    assert kept == ["block.bn_two", "block.bn_three"]


def test_a_block_that_would_grow_stays(monkeypatch):
    """A depthwise and a pointwise branch would need a full kernel."""
    from edgekit import progress

    said = []
    monkeypatch.setattr(progress, "say", said.append)
    block = Branches(branch(8, 8, 5, groups=8), branch(8, 8, 1))
    model = model_of(block, 8, 9, 9)
    made = folded(model)
    assert len(layers(made.module)) == 2
    assert not norms(made.module)
    assert any("block" in line and "larger" in line for line in said)


def test_nothing_to_do_is_said(digits_model):
    model = families.load(f"timm/{digits_model}", Options())
    with pytest.raises(EdgekitError, match=r"reparameterize: .*nothing to reparameterize"):
        apply(parse("reparameterize"), model, Context())


@pytest.fixture(scope="module")
def fastvit():
    arguments = {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128), "num_classes": 10}
    options = Options(
        random_weights=True, inputs=(Input("x", (1, 3, 64, 64)),), arguments=arguments
    )
    model = families.load("timm/fastvit_t8", options)
    seeded(model.module)
    return model, options, apply(Reparameterize(), model, Context())


def test_fastvit_in_float32(fastvit):
    model, _, made = fastvit
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        before, after = model.module(x), made.module(x)
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()
    assert not norms(made.module)
    assert len(layers(made.module)) < len(layers(model.module))
    assert sum(p.numel() for p in made.module.parameters()) < sum(
        p.numel() for p in model.module.parameters()
    )
    assert norms(model.module)  # it is left as it was


def test_fastvit_is_made_again_from_its_description(fastvit):
    model, options, made = fastvit
    described = json.loads(json.dumps(structure.describe(model.module, made.module)))
    fresh = structure.restore(families.load("timm/fastvit_t8", options).module, described)
    state = {name: value.clone() for name, value in structure.tensors(made.module).items()}
    structure.load(fresh, state, "here")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(x), made.module(x))


def test_fastvit_as_onnx_gives_the_source_outputs(fastvit, tmp_path):
    model, _, made = fastvit
    path = tmp_path / "model.onnx"
    find("converters", "onnx").convert(work.export(made), path, target("cpu"))
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    with find("runtimes", "onnxruntime").open(path, 1) as session:
        found = session.infer({"x": x})["logits"]
    with torch.no_grad():
        expected = model.module(torch.from_numpy(x)).numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()

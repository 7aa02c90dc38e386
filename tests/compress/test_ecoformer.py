"""ecoformer: attention by shared bits, learned from softmax attention, in linear time."""

from __future__ import annotations

import json

import pytest
import torch

from edgekit import families, targets
from edgekit.compress import Context, apply, measure, parse, structure
from edgekit.compress.distill import Distill
from edgekit.compress.ecoformer import EcoFormer
from edgekit.compress.modules.code_attention import CodeAttention, attend
from edgekit.compress.modules.codes import Codes
from edgekit.data import open_data
from edgekit.errors import EdgekitError
from edgekit.families import Options
from edgekit.operators.sign_codes import sign_codes, written_out
from edgekit.recipe import Recipe
from edgekit.work import Work

TINY = {"depth": 2, "embed_dim": 24, "num_heads": 3, "img_size": 16, "patch_size": 4,
        "num_classes": 10}  # fmt: skip


def load(name="vit_tiny_patch16_224", **arguments):
    options = Options(random_weights=True, arguments={**TINY, **arguments})
    return families.load(f"timm/{name}", options)


@pytest.fixture(scope="module")
def model():
    """One whose tokens look at some more than at others."""
    found = load()
    torch.manual_seed(0)
    with torch.no_grad():
        for block in found.module.blocks:
            block.attn.qkv.weight.normal_(0, 0.25)
            block.attn.proj.weight.normal_(0, 0.3)
    return found


@pytest.fixture(scope="module")
def samples():
    return list(torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)).numpy())


@pytest.fixture(scope="module")
def data(model, samples):
    return open_data(samples, model.inputs, None)


@pytest.fixture(scope="module")
def made(model, data):
    return apply(EcoFormer(steps=60, anchors=8), model, Context(data=data))


def coded(module):
    return {path for path, each in module.named_modules() if isinstance(each, CodeAttention)}


def test_attention_is_by_shared_bits():
    torch.manual_seed(0)
    queries, keys = (torch.randn(2, 3, n, 4).sign().double() for n in (5, 7))
    values = torch.randn(2, 3, 7, 6).double()
    same = (queries[..., :, None, :] == keys[..., None, :, :]).sum(-1)
    weights = (
        2 * same.double() + 1
    )  # h h' + B + 1, as B is the bits that are the same and the others
    expected = weights / weights.sum(-1, keepdim=True) @ values
    assert torch.allclose(attend(queries, keys, values), expected, rtol=0, atol=1e-12)


def test_bits_pass_gradients_near_zero():
    x = torch.tensor([-2.0, -1.0, -0.1, 0.0, 0.5, 1.5], requires_grad=True)
    codes = sign_codes(x)
    assert codes.tolist() == [-1, -1, -1, 1, 1, 1]
    assert torch.equal(written_out(x.detach()), codes.detach())
    codes.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.edgekit.sign_codes.default, (x,), test_utils=tests)


def test_a_kernel_is_gaussian():
    torch.manual_seed(0)
    codes = Codes(heads=2, head_dim=3, bits=4, anchors=5)
    with torch.no_grad():
        codes.anchors.normal_()
        codes.nearness.fill_(0.7)
    x = torch.randn(1, 2, 6, 3)
    distance = (x[:, :, :, None] - codes.anchors[None, :, None]).square().sum(-1)
    assert torch.allclose(codes.kernel(x), torch.exp(-0.49 * distance), atol=1e-6)


def test_learning_brings_attention_nearer_and_is_repeatable(model, made, data):
    plain = apply(EcoFormer(steps=0, anchors=8), model, Context(data=data))
    assert coded(made.module) == {"blocks.0.attn", "blocks.1.attn"}
    learned = measure.relative_error(model, made, data)
    assert learned < 0.9 * measure.relative_error(model, plain, data)
    again = apply(EcoFormer(steps=0, anchors=8), model, Context(data=data)).module
    for name, value in structure.tensors(plain.module).items():
        assert torch.equal(structure.tensors(again)[name], value)


def test_it_is_saved_and_loaded(model, made):
    described = json.loads(json.dumps(structure.describe(model.module, made.module)))
    restored = structure.restore(load().module, described)
    structure.load(restored, structure.tensors(made.module), "here")
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(restored.eval()(x), made.module(x))


def test_distillation_trains_the_codes(model, made, data):
    after = apply(Distill(steps=2, rate=0.01, batch_size=4), made, Context(data, teacher=model))
    for kind in ("queries", "keys"):
        old, new = (getattr(each.module.blocks[0].attn, kind) for each in (made, after))
        for name, value in old.named_parameters():
            assert not torch.equal(value, new.get_parameter(name))


def test_operations_grow_with_the_length():
    """A token costs the same at any length, where softmax attention's cost grows."""

    def share(size, **coded):
        found = load(img_size=size)
        if coded:
            sample = torch.zeros(1, 3, size, size).numpy()
            data = open_data(list(sample), found.inputs, None)
            found = apply(EcoFormer(steps=0, **coded), found, Context(data=data))
        return measure.operations(found) / (size // 4) ** 2

    assert share(64, bits=8) == pytest.approx(share(16, bits=8), rel=0.1)
    assert share(64) > 1.2 * share(16)
    assert share(64, bits=8) < share(64)


def test_exclude_and_what_is_left(model, data):
    step = parse("ecoformer:steps=0,exclude=[blocks.0]")
    assert coded(apply(step, model, Context(data=data)).module) == {"blocks.1.attn"}


def test_a_model_without_plain_attention_is_refused():
    model = load("vit_base_patch16_rope_reg1_gap_256")
    data = open_data([torch.zeros(3, 16, 16).numpy()], model.inputs, None)
    with pytest.raises(EdgekitError, match="no attention that codes") as caught:
        apply(EcoFormer(), model, Context(data=data))
    assert "rotation" in caught.value.why


def test_it_needs_data(model):
    with pytest.raises(EdgekitError, match="no data"):
        apply(EcoFormer(), model, Context())


@pytest.mark.parametrize("options", ["bits=0", "anchors=1", "steps=-1", "rate=0", "samples=0"])
def test_bad_options(options):
    with pytest.raises(EdgekitError):
        parse(f"ecoformer:{options}")


@pytest.mark.parametrize(
    ("target", "format", "precision", "name"),
    [
        ("cpu", "onnx", "int8", "model.onnx"),
        ("iphone-15-pro", "coreml", "fp16", "model.mlpackage"),
    ],
)
def test_artifacts_hold_it(target, format, precision, name, data, samples, tmp_path):
    if format == "coreml":
        pytest.importorskip("coremltools")
    asked = Work(Recipe.check({"model": "mine", "precision": precision}, "test"), samples)
    asked.original = apply(EcoFormer(steps=5, anchors=4), load(depth=1), Context(data=data))
    assert asked.graph.discrete
    device = targets.load(target)
    _, status, drift = asked.single(device, format, tmp_path / name)
    assert status == "verified"
    assert drift is not None

"""sparsify: two of every four weights are zero, through INT8 and into the ONNX file."""

from __future__ import annotations

import json

import onnx
import pytest
import torch
from torch import nn

from edgekit import families, targets
from edgekit.compress import Context, apply, layers, measure, parse, structure
from edgekit.compress.sparsify import Sparsify
from edgekit.compress.sparsity import by_magnitude, by_reconstruction, is_sparse
from edgekit.converters import sparsity
from edgekit.data import open_data
from edgekit.edit import Editor
from edgekit.errors import EdgekitError
from edgekit.families import Options
from edgekit.model import Input, Model
from edgekit.quantize.rounding import find_weights
from edgekit.quantize.weights import levels
from edgekit.recipe import Recipe
from edgekit.work import Work


@pytest.fixture(scope="module")
def model(digits_model):
    return families.load(f"timm/{digits_model}", Options())


@pytest.fixture(scope="module")
def data(model, digits_folder):
    return open_data(digits_folder, model.inputs, model.preprocess)


@pytest.fixture(scope="module")
def made(model, data):
    return apply(Sparsify(samples=16), model, Context(data=data))


def correlated(width, rows=400, seed=0):
    """H of inputs that depend on one another, in float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64) @ mix
    return x.T @ x / rows


def loss(error, gram):
    return float(((error @ gram) * error).sum())


def test_magnitude_keeps_the_two_largest_of_four():
    weight = torch.tensor([[1.0, -4.0, 2.0, 3.0, 0.5, 0.0, -0.25, 0.1]])
    assert by_magnitude(weight).tolist() == [[0, -4, 0, 3, 0.5, 0, -0.25, 0]]


def test_reconstruction_beats_magnitude_and_is_it_where_inputs_are_independent():
    torch.manual_seed(0)
    weight = torch.randn(24, 160, dtype=torch.float64)  # more columns than a block
    gram = correlated(160)
    found = by_reconstruction(weight, gram, 0.0)
    assert is_sparse(found)
    assert loss(weight - found, gram) < 0.8 * loss(weight - by_magnitude(weight), gram)
    alone = by_reconstruction(weight, torch.eye(160, dtype=torch.float64), 0.0)
    assert torch.equal(alone, by_magnitude(weight))


def test_reconstruction_of_one_group_is_the_best_update_of_what_comes_later():
    """With the first two weights set to zero, the last two are the least squares."""
    weight = torch.tensor([[0.01, 0.02, 3.0, -2.0]], dtype=torch.float64)
    gram = correlated(4, seed=1)
    gram = gram / 50 + torch.eye(4, dtype=torch.float64)
    found = by_reconstruction(weight, gram, 0.0)
    assert found[0, :2].tolist() == [0, 0]
    best = weight[0, 2:] + torch.linalg.solve(gram[2:, 2:], gram[2:, :2] @ weight[0, :2])
    assert torch.allclose(found[0, 2:], best, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(8, 6, bias=False), (3, 5, 8)),
        (nn.Conv2d(8, 6, 3, 2, 1, bias=False), (2, 8, 7, 9)),
        (nn.Conv2d(8, 6, (1, 3), padding="same", dilation=2, groups=2, bias=False), (2, 8, 5, 6)),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False), (2, 4, 5, 6)),
        (nn.Conv1d(8, 6, 3, 1, 2, groups=2, bias=False), (2, 8, 9)),
    ],
    ids=["linear", "strided", "grouped", "reflected", "one-dimensional"],
)
def test_a_layer_is_the_product_of_its_rows_and_its_matrix(layer, shape):
    layer = layer.double()
    x = torch.randn(shape, dtype=torch.float64)
    product = layers.rows_of(layer, x) @ layers.matrix_of(layer).transpose(1, 2)
    expected = layer(x).detach()
    if isinstance(layer, nn.Linear):
        assert torch.allclose(product[0], expected.flatten(0, 1), atol=1e-12)
    else:
        by_channel = expected.flatten(2).permute(0, 2, 1).flatten(0, 1)
        joined = product.permute(1, 0, 2).flatten(1)
        assert torch.allclose(joined, by_channel, atol=1e-12)
    before = layer.weight.detach().clone()
    layers.assign(layer, layers.matrix_of(layer) * 2)
    assert torch.equal(layer.weight, 2 * before)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 64, 3)
        self.whole = nn.Conv2d(64, 16, 3)
        self.few = nn.Conv2d(16, 64, 1)
        self.grouped = nn.Conv2d(64, 64, 3, groups=2, padding=1)
        self.own = nn.Conv2d(64, 64, 3, groups=64)
        self.odd = nn.Linear(66, 64)
        self.blocks = nn.ModuleList([nn.Linear(64, 66)])
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        x = self.own(self.grouped(self.few(self.whole(self.first(x))))).mean((2, 3))
        return self.head(self.odd(self.blocks[0](x)))


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
def test_convolutions_are_sparse_along_their_input_channels(method):
    model = Model(Convolutions().eval(), (Input("x", (1, 1, 10, 10)),), ("y",), "mine")
    data = open_data(list(torch.randn(8, 1, 10, 10).numpy()), model.inputs, None)
    after = apply(Sparsify(method=method), model, Context(data=data)).module
    sparse = {path for path, each in after.named_parameters() if is_sparse(each)}
    assert sparse == {"whole.weight", "grouped.weight", "blocks.0.weight"}
    groups = after.grouped.weight.reshape(64, 8, 4, 3, 3)
    assert ((groups != 0).sum(2) == 2).all()


def test_what_stays_dense_and_what_does_not(model, made):
    for path, layer in made.module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            assert is_sparse(layer.weight) == path.startswith("blocks")
    assert not any(is_sparse(each) for each in model.module.parameters())
    kept = made.module.blocks[0].mlp.fc1
    assert torch.equal(kept.bias, model.module.blocks[0].mlp.fc1.bias)


def test_reconstruction_serves_the_whole_model(model, made, data):
    plain = apply(Sparsify(method="magnitude"), model, Context())
    own = measure.relative_error(model, made, data)
    assert own < 0.7 * measure.relative_error(model, plain, data)


def test_it_is_saved_and_loaded(model, made, digits_model):
    described = json.loads(json.dumps(structure.describe(model.module, made.module)))
    fresh = families.load(f"timm/{digits_model}", Options(random_weights=True)).module
    restored = structure.restore(fresh, described)
    structure.load(restored, structure.tensors(made.module), "here")
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(restored.eval()(x), made.module(x))


def test_exclude(model):
    options = {"method": "magnitude", "exclude": ["blocks.0", "*.qkv"]}
    found = apply(parse({"sparsify": options}), model, Context())
    sparse = {path for path, each in found.module.named_parameters() if is_sparse(each)}
    rest = ("attn.proj", "mlp.fc1", "mlp.fc2")
    assert sparse == {f"blocks.1.{name}.weight" for name in rest}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("sparsify", "no data for sparsegpt"),
        ("sparsify:method=magnitude,exclude=[blck*]", "matches no layer"),
        ("sparsify:method=magnitude,exclude=[blocks]", "no layer to make sparse"),
    ],
)
def test_what_cannot_be_done_is_said(step, message, model):
    with pytest.raises(EdgekitError, match=message):
        apply(parse(step), model, Context())


@pytest.mark.parametrize("options", ["damping=-1", "samples=0", "batch_size=0", "method=best"])
def test_bad_options(options):
    with pytest.raises(EdgekitError):
        parse(f"sparsify:{options}")


def test_tied_and_uncalled_weights_and_conv1d_stay_as_they_are():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    inner = transformers.GPT2LMHeadModel(config)
    wrapped = families.transformers._wrap(inner, ("logits",))
    model = Model(wrapped.eval(), (Input("input_ids", (1, 8), "int64"),), ("logits",), "gpt2")
    found = layers.find(model, (nn.Linear,), ())
    assert not found.chosen
    assert any("Conv1D" in why for why in found.left)
    assert any("another module" in why for why in found.left)
    with pytest.raises(EdgekitError, match="no layer") as caught:
        apply(Sparsify(method="magnitude"), model, Context())
    assert "Conv1D" in caught.value.why


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        (
            "timm/crossvit_tiny_240",
            {"img_size": 32, "img_scale": [1.0, 0.75], "patch_size": [8, 12], "in_chans": 1,
             "embed_dim": [24, 32], "depth": [[1, 1, 0]], "num_heads": [2, 2],
             "mlp_ratio": [2, 2, 1], "num_classes": 10},
        ),
        (
            "reference/vision_mamba",
            {"image_size": [32, 32], "patch": [8, 8], "width": 32, "depth": 1, "state": 4,
             "classes": 10, "mean": [0.5], "std": [0.5]},
        ),
    ],
    ids=["crossvit", "mamba"],
)  # fmt: skip
def test_other_families(source, arguments, digits_folder):
    model = families.load(source, Options(random_weights=True, arguments=arguments))
    data = open_data(digits_folder, model.inputs, model.preprocess)
    after = apply(Sparsify(samples=8), model, Context(data=data))
    sparse = [path for path, each in after.module.named_parameters() if is_sparse(each)]
    assert sparse
    assert not any("head" in path or "embed" in path for path in sparse)


@pytest.fixture(scope="module")
def work(made, digits_model, digits_folder):
    """The sparse model, to be converted in any precision."""

    def of(**asked):
        fields = {"model": f"timm/{digits_model}", "calibration": digits_folder, "samples": 16}
        found = Work(Recipe.check({**fields, **asked}, "test"))
        found.original = made
        return found

    return of


def check(path):
    """All but the head and the embedding are sparse along the axis that is summed over."""
    model = onnx.load(path)
    found = sparsity.weights(model, path.parent)
    sparse = sparsity.sparse(model, path.parent)
    assert len(sparse) == 8
    for name in sparse:
        groups = (found[name] != 0).reshape(len(found[name]), -1, 4)
        assert (groups.sum(-1) <= 2).all()


@pytest.mark.parametrize("target", ["rtx-3090", "jetson-orin-nano-super"])
def test_half_precision_files_are_sparse_along_the_sums(target, work, tmp_path):
    check(work(precision="fp16").artifact(targets.load(target), "onnx", tmp_path, None))


@pytest.mark.parametrize("target", ["rtx-3090", "jetson-orin-nano-super"])
def test_int8_files_are_sparse_along_the_sums(target, work, tmp_path):
    asked = work(precision="int8", effort="best")
    check(asked.artifact(targets.load(target), "onnx", tmp_path, asked.quantize()))


@pytest.mark.parametrize("effort", ["quick", "balanced", "best"])
@pytest.mark.parametrize("precision", ["int8", "w4a16"])
def test_quantization_keeps_the_zeros(precision, effort, work):
    asked = work(precision=precision, effort=effort)
    found = asked.quantize()
    editor = Editor(found.applied(asked.graph))
    rounded = {
        weight.name: levels(weight.value, found.table.sites[weight.site.name])
        for weight in find_weights(editor, found.table)
    }
    sparse = [name for name, value in rounded.items() if name.startswith("blocks")]
    assert len(sparse) == 8
    assert all(is_sparse(rounded[name]) for name in sparse)

"""factorize: linears become products of fewer bytes, and files that are smaller."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from edgekit import families, targets
from edgekit.compress import Context, apply, layers, measure, parse, structure
from edgekit.compress.factorize import Factorize
from edgekit.compress.factors import Choice, allot, damped, dictionary, low_rank, relative_error
from edgekit.compress.modules.dictionary import Dictionary
from edgekit.compress.modules.low_rank import LowRank
from edgekit.data import open_data
from edgekit.errors import EdgekitError
from edgekit.families import Options
from edgekit.model import Input, Model
from edgekit.operators.sparse_codes import bits, pack, sparse_codes, unpack
from edgekit.recipe import Recipe
from edgekit.work import Work

DICTIONARY = {"method": "dictionary", "block": 24, "steps": 10}


@pytest.fixture(scope="module")
def model(digits_model):
    return families.load(f"timm/{digits_model}", Options())


@pytest.fixture(scope="module")
def data(model, digits_folder):
    return open_data(digits_folder, model.inputs, model.preprocess)


@pytest.fixture(scope="module")
def context(data):
    return Context(data=data.take(32, 0))


@pytest.fixture(scope="module")
def made(model, context):
    """By method."""
    return {
        "svd": apply(Factorize(ratio=0.5), model, context),
        "dictionary": apply(Factorize(ratio=0.5, **DICTIONARY), model, context),
    }


def correlated(width):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(width, width // 4, generator=generator, dtype=torch.float64)
    return mix @ mix.T + 0.1 * torch.eye(width, dtype=torch.float64)


def linear(inputs, outputs):
    torch.manual_seed(1)
    return nn.Linear(inputs, outputs).double()


def test_low_rank_leaves_what_the_singular_values_say():
    layer, gram = linear(32, 48), correlated(32)
    found = low_rank.fit(layer, gram)
    for rank in (1, 8, 31):
        error = relative_error(layer.weight, found.made(rank).dense(), gram)
        assert error == pytest.approx(float(found.errors[rank]), abs=1e-12)
    whole = found.made(32)
    x = torch.randn(5, 32, dtype=torch.float64)
    assert torch.allclose(whole(x), layer(x), rtol=0, atol=1e-9)
    assert torch.allclose(whole.dense(), layer.weight, rtol=0, atol=1e-10)


def test_low_rank_knows_what_enters():
    layer, gram = linear(32, 48), correlated(32)
    plain = low_rank.fit(layer, damped(None, 32)).made(8).dense()
    own = low_rank.fit(layer, gram).made(8).dense()
    assert relative_error(layer.weight, own, gram) < 0.2 * relative_error(layer.weight, plain, gram)
    assert (layer.weight - plain).norm() < (layer.weight - own).norm()


@pytest.mark.parametrize("atoms", [2, 3, 16, 48, 256])
def test_places_are_packed_in_as_few_bits(atoms):
    places = torch.randint(0, atoms, (13, 5), generator=torch.Generator().manual_seed(0))
    packed = pack(places, atoms)
    assert len(packed) == -(-13 * 5 * max(1, int(np.ceil(np.log2(atoms)))) // 8)
    assert torch.equal(unpack(packed, atoms, 13, 5), places)


def test_codes_are_an_operator_that_learns():
    values = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    places = torch.tensor([[0, 3], [1, 2], [4, 0], [2, 1], [3, 4], [0, 1]])
    packed = pack(places, 5)
    expected = torch.zeros(6, 5, dtype=torch.float64).scatter(1, places, values.detach())
    assert torch.equal(sparse_codes(values, packed, 5).detach(), expected)
    assert torch.autograd.gradcheck(lambda v: sparse_codes(v, packed, 5), values)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    operator = torch.ops.edgekit.sparse_codes.default
    torch.library.opcheck(operator, (values, packed, 5), test_utils=tests)


def test_a_dictionary_computes_what_it_stands_for():
    made = Dictionary(20, 24, 8, 6, 2, True).double()
    codes = dictionary.top(torch.randn(60, 6, dtype=torch.float64), 2)
    basis = torch.randn(8, 6, dtype=torch.float64)
    made.assign(basis, codes)
    assert torch.allclose(made.dense(), dictionary.joined(basis, codes, torch.Size((24, 20))))
    x = torch.randn(3, 7, 20, dtype=torch.float64)
    assert torch.allclose(made(x), x @ made.dense().T + made.bias, rtol=0, atol=1e-12)


def test_learning_lowers_the_error_and_the_last_step_is_the_best_dictionary():
    layer, gram = linear(32, 48), damped(correlated(32), 32)
    found = dictionary.fit(layer, gram, 16, 16)
    errors = [
        relative_error(layer.weight, found.made(5, steps).dense(), gram) for steps in (0, 100)
    ]
    assert errors[1] < 0.7 * errors[0]
    codes = dictionary.top(torch.randn(96, 16, dtype=torch.float64), 5)
    weight = layer.weight.detach()
    best = dictionary.best_dictionary(weight, codes, gram, 16)
    least = relative_error(weight, dictionary.joined(best, codes, weight.shape), gram)
    for _ in range(5):
        other = best + 1e-2 * torch.randn_like(best)
        assert relative_error(weight, dictionary.joined(other, codes, weight.shape), gram) > least


def test_all_values_of_a_code_are_the_weight():
    layer = linear(32, 48)
    found = dictionary.fit(layer, damped(None, 32), 16, 16)
    whole = dictionary.fit(layer, damped(None, 32), 16, 16).made(16, 0)
    assert relative_error(layer.weight, whole.dense(), damped(None, 32)) < 1e-10
    assert all(choice.bytes < layer.weight.nbytes for choice in found.choices()[:-1])


def test_bytes_go_where_they_save_most():
    easy = [Choice(1, 10, 0.5), Choice(2, 20, 0.1), Choice(3, 30, 0.0)]
    hard = [Choice(1, 10, 0.9), Choice(2, 20, 0.88), Choice(0, 40, 0.0)]
    sizes = {budget: allot({"a": easy, "b": hard}, budget) for budget in (20, 30, 50, 60, 70)}
    taken = {b: (found["a"].size, found["b"].size) for b, found in sizes.items()}
    assert taken == {20: (1, 1), 30: (2, 1), 50: (3, 1), 60: (2, 0), 70: (3, 0)}
    for budget, found in sizes.items():
        assert sum(choice.bytes for choice in found.values()) <= budget


@pytest.mark.parametrize("method", ["svd", "dictionary"])
def test_the_share_of_bytes_is_met(method, model, made):
    share = layers.stored_bytes(made[method].module) / layers.stored_bytes(model.module)
    assert 0.45 < share <= 0.5
    kinds = {"svd": LowRank, "dictionary": Dictionary}
    assert sum(isinstance(each, kinds[method]) for each in made[method].module.modules()) >= 6


def test_dictionaries_count_the_bits_of_places(made):
    found = [each for each in made["dictionary"].module.modules() if isinstance(each, Dictionary)]
    for each in found:
        places = each.in_features * each.blocks * each.nonzeros
        assert each.packed.nbytes == -(-places * bits(each.atoms) // 8)


def test_data_helps(model, made, data):
    plain = apply(Factorize(ratio=0.5, calibrated=False), model, Context())
    own = measure.relative_error(model, made["svd"], data)
    assert own < measure.relative_error(model, plain, data)


@pytest.mark.parametrize("method", ["svd", "dictionary"])
def test_it_is_saved_and_loaded(method, model, made, digits_model):
    after = made[method].module
    described = json.loads(json.dumps(structure.describe(model.module, after)))
    fresh = families.load(f"timm/{digits_model}", Options(random_weights=True)).module
    restored = structure.restore(fresh, described)
    structure.load(restored, structure.tensors(after), "here")
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(restored.eval()(x), after(x))
        assert not torch.equal(after(x), model.module(x))


@pytest.mark.parametrize(
    ("method", "precision", "target"),
    [
        ("svd", "fp32", "cpu"),
        ("dictionary", "fp32", "cpu"),
        ("dictionary", "fp16", "jetson-orin-nano-super"),
    ],
)
def test_onnx_files_are_smaller_and_equal(
    method, precision, target, made, digits_model, digits_folder, tmp_path
):
    fields = {"model": f"timm/{digits_model}", "evaluation": digits_folder}
    work = Work(Recipe.check({**fields, "precision": precision}, "test"))
    work.original = made[method]
    path = work.artifact(targets.load(target), "onnx", tmp_path, None)
    file = onnx.load(path)
    held = sum(onnx.numpy_helper.to_array(each).nbytes for each in file.graph.initializer)
    # Half precision halves values, but no places; normalisations stay in single.
    stored = layers.stored_bytes(made[method].module) * (0.7 if precision == "fp16" else 1)
    assert held < 1.02 * stored
    x = np.random.default_rng(0).standard_normal((1, 1, 32, 32)).astype(np.float32)
    (actual,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": x})
    with torch.no_grad():
        expected = made[method].module(torch.from_numpy(x)).numpy()
    assert np.abs(actual - expected).max() < (1e-5 if precision == "fp32" else 2e-2)


def test_a_stopped_run_goes_on(model, context, tmp_path):
    kept = Context(data=context.data, folder=tmp_path)
    first = apply(Factorize(ratio=0.5, **DICTIONARY), model, kept)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(written) >= 6
    second = apply(Factorize(ratio=0.5, **DICTIONARY), model, kept)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(first.module(x), second.module(x))


def test_exclude(model, context):
    found = apply(Factorize(ratio=0.7, exclude=("blocks.0", "head")), model, context)
    places = [path for path, each in found.module.named_modules() if isinstance(each, LowRank)]
    assert places
    assert all(path.startswith("blocks.1") for path in places)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("factorize:ratio=0.5", "no data"),
        ("factorize:ratio=0.5,calibrated=false,exclude=[blocks,head]", "no linear to factorise"),
        ("factorize:ratio=0.01,calibrated=false", "cannot be had"),
        ("factorize:ratio=0.5,calibrated=false,exclude=[tail]", "matches no layer"),
    ],
)
def test_what_cannot_be_done_is_said(step, message, model):
    with pytest.raises(EdgekitError, match=message):
        apply(parse(step), model, Context())


@pytest.mark.parametrize(
    "options",
    ["ratio=0", "ratio=1.0", "ratio=nan", "ratio=0.5,steps=-1", "ratio=0.5,block=1",
     "ratio=0.5,atoms=4", "ratio=0.5,block=8,atoms=16", "ratio=0.5,method=qr"],
)  # fmt: skip
def test_bad_options(options):
    with pytest.raises(EdgekitError):
        parse(f"factorize:{options}")


class ReadsAWeight(nn.Module):
    """What takes a layer's weight besides calling it, as T5 does for its dtype."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        return self.two(self.one(x).to(self.one.weight.dtype))


def test_a_parent_that_reads_a_weight_is_named():
    model = Model(ReadsAWeight().eval(), (Input("x", (1, 64)),), ("y",), "mine")
    with pytest.raises(EdgekitError, match="does not run with products"):
        apply(Factorize(ratio=0.5, calibrated=False), model, Context())
    found = apply(Factorize(ratio=0.8, calibrated=False, exclude=("one",)), model, Context())
    assert isinstance(found.module.two, LowRank)


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        (
            "timm/crossvit_tiny_240",
            {"img_size": 32, "img_scale": [1.0, 0.75], "patch_size": [8, 12], "in_chans": 1,
             "embed_dim": [32, 48], "depth": [[1, 1, 0]], "num_heads": [2, 2],
             "mlp_ratio": [4, 4, 1], "num_classes": 10},
        ),
        (
            "reference/vision_mamba",
            {"image_size": [32, 32], "patch": [8, 8], "width": 48, "depth": 2, "state": 4,
             "classes": 10, "mean": [0.5], "std": [0.5]},
        ),
    ],
    ids=["crossvit", "mamba"],
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, DICTIONARY], ids=["svd", "dictionary"])
def test_other_families(source, arguments, options, digits_folder):
    model = families.load(source, Options(random_weights=True, arguments=arguments))
    data = open_data(digits_folder, model.inputs, model.preprocess)
    after = apply(Factorize(ratio=0.8, samples=8, **options), model, Context(data=data))
    assert layers.stored_bytes(after.module) <= 0.8 * layers.stored_bytes(model.module)
    after.export()

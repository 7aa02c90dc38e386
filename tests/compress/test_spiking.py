"""spiking: where units go, that folding is exact, refits, two forms of one model, and bad input."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgekit import compression, data, families
from edgekit.compress import Context, apply, structure
from edgekit.compress.batches import batches, outputs
from edgekit.compress.conversion import places
from edgekit.compress.distill import Distill
from edgekit.compress.measure import relative_error
from edgekit.compress.modules.encoded import Encoded
from edgekit.compress.spiking import Spiking, units
from edgekit.errors import EdgekitError
from edgekit.families import Options
from edgekit.families.torchvision import repair
from edgekit.model import Input, Model
from edgekit.recipe import Recipe

EXAMPLES = Path(__file__).parents[2] / "examples"


def vit():
    repair()
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=5, in_chans=2
    )


def poolformer():
    repair()
    from timm.models.metaformer import MetaFormer

    return MetaFormer(
        in_chans=2,
        num_classes=5,
        depths=(1, 1),
        dims=(8, 16),
        mlp_act=nn.GELU,
        use_mlp_head=False,
    )


def mixer():
    repair()
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(
        num_classes=5, img_size=16, in_chans=2, patch_size=8, num_blocks=2, embed_dim=16
    )


def crossvit():
    repair()
    from timm.models.crossvit import CrossVit

    return CrossVit(
        img_size=16,
        img_scale=(1.0, 1.0),
        patch_size=(4, 8),
        in_chans=2,
        num_classes=5,
        embed_dim=(8, 16),
        depth=((1, 1, 0),),
        num_heads=(2, 2),
        mlp_ratio=(2.0, 2.0, 1.0),
    )


#: By name: how it is made, its units of activations, and the convolutions that take spikes.
BUILT = {
    "vit": (vit, 2, ["patch_embed.proj"]),
    "poolformer": (poolformer, 2, ["stem.conv"]),
    "mixer": (mixer, 4, ["stem.proj"]),
    "crossvit": (crossvit, 6, ["patch_embed.0.proj", "patch_embed.1.proj"]),
}


class Grouped(nn.Module):
    """A grouped convolution, a flattening, and what cannot be units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.act = nn.ReLU()
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.soft = nn.SiLU()
        self.flat = nn.Linear(8 * 64, 12)
        self.gated, self.added = nn.GELU(), nn.ReLU()
        self.norm, self.last = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x):
        x = self.soft(self.grouped(self.act(self.stem(x))))
        x = self.flat(x.flatten(1))
        x = x + self.added(x)
        x = self.gated(x) * x
        return self.last(functional.relu(self.norm(x)))


def model_of(module, size=16):
    torch.manual_seed(0)
    made = module().eval()
    for each in made.modules():
        if isinstance(each, nn.Linear | nn.Conv2d):
            nn.init.normal_(each.weight, std=(2 / each.weight[0].numel()) ** 0.5)
    return Model(made, (Input("x", (2, 2, size, size)),), ("y",), module.__name__)


def samples(size=16, count=48):
    x = np.random.default_rng(0).standard_normal((count, 2, size, size)).astype("float32")
    return data.open_data({"x": x}, (Input("x", (2, 2, size, size)),), None)


def batch(size=16):
    return torch.from_numpy(np.stack([samples(size).read(i)["x"] for i in range(8)]))


@pytest.fixture(scope="module")
def context():
    return Context(data=samples())


@pytest.fixture(scope="module")
def made(context):
    """By name: the source, and the model with units."""
    found = {}
    for name, (module, *_) in BUILT.items():
        source = model_of(module)
        found[name] = (source, apply(Spiking(steps=4), source, context))
    return found


@pytest.mark.parametrize("name", BUILT)
def test_units_stand_for_activations_and_patch_embeddings(name, made):
    source, spiking = made[name]
    _, activations, encoded = BUILT[name]
    found = units(spiking.module)
    assert [p for p, m in spiking.module.named_modules() if isinstance(m, Encoded)] == encoded
    assert [path for path, unit in found.items() if unit.signed] == [f"{p}.unit" for p in encoded]
    assert len(found) == activations + len(encoded)
    assert not any(places.is_rectifier(module) for module in spiking.module.modules())
    assert all(unit.channels > 1 for unit in found.values())
    assert not units(source.module)
    assert relative_error(source, spiking, samples()) < 0.2


@pytest.mark.parametrize("name", BUILT)
def test_both_forms_are_one_model(name, made):
    _, spiking = made[name]
    temporal = apply(Spiking(steps=4, form="temporal"), spiking, Context())
    assert {unit.form for unit in units(temporal.module).values()} == {"temporal"}
    assert {unit.form for unit in units(spiking.module).values()} == {"folded"}
    with torch.no_grad():
        assert torch.equal(temporal.module(batch()), spiking.module(batch()))


@pytest.mark.parametrize("name", BUILT)
def test_it_is_saved_as_a_description_and_tensors(name, made):
    source, spiking = made[name]
    described = structure.describe(source.module, spiking.module)
    again = structure.restore(BUILT[name][0]().eval(), described)
    state = {name: value.clone() for name, value in structure.tensors(spiking.module).items()}
    structure.load(again, state, "here")
    with torch.no_grad():
        assert torch.equal(again(batch()), spiking.module(batch()))
    unit = next(path for path in state if path.endswith("threshold"))
    state[unit] = torch.full_like(state[unit], torch.nan)
    with pytest.raises(EdgekitError, match="thresholds are not above zero"):
        structure.load(again, state, "here")


def test_an_encoded_convolution_answers_as_it_did(made):
    source, spiking = made["vit"]
    before, after = source.module.patch_embed.proj, spiking.module.patch_embed.proj
    assert after.weight.shape == before.weight.shape
    assert after.stride == before.stride
    assert not hasattr(after, "nothing")
    names = [name for name, _ in after.named_parameters()]
    assert names == ["layer.weight", "layer.bias"]


def test_folding_is_exact(context):
    """With units of many levels a channel, of any groups, and flattened."""
    source = model_of(Grouped, 8)
    spiking = apply(Spiking(steps=5, refit=False), source, Context(data=samples(8)))
    found = units(spiking.module)
    assert {path: unit.channels for path, unit in found.items()} == {
        "stem.unit": 2, "act": 8, "soft": 8
    }  # fmt: skip
    seen = {}
    for path, unit in found.items():
        unit.register_forward_hook(lambda *given, path=path: seen.__setitem__(path, given[2]))
    with torch.no_grad():
        spiking.module(batch(8))
        for path, reader in (("stem.unit", "stem"), ("act", "grouped"), ("soft", "flat")):
            unit, own = found[path], spiking.module.get_submodule(reader)
            y = seen[path]
            share = (unit.threshold / (unit.steps * unit.scale)).double().reshape(1, -1, 1, 1)
            levels = y.double() * share
            y = y if reader != "flat" else y.flatten(1)
            levels = levels if reader != "flat" else levels.flatten(1)
            before = source.module.get_submodule(reader).double()
            own = (own.layer if isinstance(own, Encoded) else own).double()
            assert torch.allclose(own(y.double()), before(levels), rtol=1e-5, atol=1e-6)
            assert float(np.float16(unit.scale)) == unit.scale
            assert len(set(unit.threshold.tolist())) > 1


@pytest.mark.parametrize("name", ["vit", "poolformer", "crossvit"])
def test_a_refit_wins_error_back(name, made, context):
    source, spiking = made[name]
    plain = apply(Spiking(steps=4, refit=False), source, context)
    assert relative_error(source, spiking, samples()) < relative_error(source, plain, samples())


@pytest.mark.parametrize("options", [{"granularity": "tensor"}, {"threshold": "percentile"}])
def test_other_thresholds(options, made, context):
    source, _ = made["vit"]
    other = apply(Spiking(steps=4, **options), source, context)
    assert relative_error(source, other, samples()) < 0.3
    for unit in units(other.module).values():
        single = options.get("granularity") == "tensor"
        assert (unit.channels == 1) == single
        if single:
            assert float(unit.threshold) == pytest.approx(unit.scale * unit.steps, rel=1e-6)


def test_more_steps_are_nearer(made, context):
    source, four = made["vit"]
    errors = [relative_error(source, four, samples())]
    for steps in (16, 64):
        errors.append(
            relative_error(source, apply(Spiking(steps=steps), source, context), samples())
        )
    assert errors == sorted(errors, reverse=True)


def test_what_cannot_be_a_unit_is_left_with_its_reason():
    found = places.find(model_of(Grouped, 8), ("activations",))
    assert list(found.chosen) == ["act", "soft"]
    why = {path: reason for reason, paths in found.left.items() for path in paths}
    assert "gate" in why["gated"]
    assert "addition" in why["added"]
    assert "functions" in why["relu_2"]


def test_a_weight_that_is_read_twice_stays():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act, self.b = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)

        def forward(self, x):
            return self.b(self.act(self.a(x))) + self.b(x)

    source = Model(Tied().eval(), (Input("x", (2, 8)),), ("y",), "tied")
    x = np.random.default_rng(0).standard_normal((40, 8)).astype("float32")
    held = data.open_data({"x": x}, source.inputs, None)
    spiking = apply(Spiking(steps=8), source, Context(data=held))
    unit = spiking.module.act
    assert unit.channels == 1
    assert torch.equal(spiking.module.b.weight, source.module.b.weight)
    assert float(unit.threshold) == unit.scale * 8


def test_a_silent_channel_keeps_the_model_finite(context):
    source = model_of(vit)
    with torch.no_grad():
        source.module.blocks[0].mlp.fc1.weight[:3] = 0
        source.module.blocks[0].mlp.fc1.bias[:3] = -5
    spiking = apply(Spiking(steps=4), source, context)
    thresholds = spiking.module.blocks[0].mlp.act.threshold
    assert bool((thresholds[:3] == thresholds[0]).all())
    assert thresholds[3:].min() <= thresholds[0] <= thresholds[3:].max()
    assert bool(spiking.module(batch()).isfinite().all())


def test_distilling_trains_through_units(made, context):
    source, spiking = made["vit"]
    step = Distill(steps=30, batch_size=16, rate=1e-3, losses=("logits",))
    trained = apply(step, spiking, dataclasses.replace(context, teacher=source))
    before, after = units(spiking.module), units(trained.module)
    assert list(before) == list(after)
    for path, unit in before.items():
        assert torch.equal(unit.threshold, after[path].threshold)
    fc1 = "blocks.0.mlp.fc1.weight"
    old, new = (each.module.get_parameter(fc1) for each in (spiking, trained))
    assert not torch.equal(old, new)
    assert relative_error(source, trained, samples()) < relative_error(source, spiking, samples())


def test_the_command_line_writes_a_model_that_loads(digits_model, digits_folder, tmp_path):
    fields = {"model": f"timm/{digits_model}", "calibration": digits_folder, "samples": 16}
    asked = Recipe.check(
        {**fields, "evaluation_samples": 16, "passes": ["spiking:steps=3,samples=16"]}, "here"
    )
    compression.compress(asked, tmp_path / "spiking")
    loaded = families.load(f"compressed/{tmp_path / 'spiking'}", Options())
    assert {unit.steps for unit in units(loaded.module).values()} == {3}
    temporal = apply(Spiking(steps=3, form="temporal"), loaded, Context())
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), temporal.module(x))
    assert loaded.export().discrete


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("steps=0", "steps is 0"),
        ("steps=128", "steps is 128"),
        ("steps=eight", "steps is not right"),
        ("percentile=0", "percentile=0"),
        ("percentile=101", "percentile=101"),
        ("percentile=99", "percentile=99.0 goes with threshold=percentile"),
        ("threshold=entropy", "threshold is not right"),
        ("form=spikes", "form is not right"),
        ("places=[attention]", "places.0 is not right"),
        ("places=[]", "places is empty"),
        ("samples=0", "samples=0"),
        ("layers=[blocks.0.norm1]", "blocks.0.norm1, which has no spiking form"),
        ("layers=[blocks.*.attn]", "blocks.0.attn, which has no spiking form"),
        ("layers=[nothing.*]", "layers='nothing.*' matches no layer"),
        ("exclude=[nothing]", "exclude='nothing' matches no layer"),
        ("exclude=[blocks,patch_embed]", "has no place for a spiking unit"),
    ],
)
def test_bad_options_are_named(options, words, edgekit, digits_model, digits_folder, tmp_path):
    ran = edgekit(
        "compress", f"timm/{digits_model}", "--pass", f"spiking:{options}",
        "--calibration", digits_folder, "--samples", 4, "--evaluation-samples", 4,
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert ran.code == 2
    assert words in " ".join(ran.err.split())
    assert not (tmp_path / "out").exists()


def test_layers_alone_become_units(made, context):
    source, _ = made["vit"]
    one = apply(Spiking(steps=4, layers=("blocks.1",), refit=False), source, context)
    assert list(units(one.module)) == ["blocks.1.mlp.act"]
    rest = apply(Spiking(steps=4, exclude=("blocks.1",), refit=False), source, context)
    assert list(units(rest.module)) == ["patch_embed.proj.unit", "blocks.0.mlp.act"]


@pytest.mark.parametrize("path", ["gated", "added"])
def test_a_layer_without_a_spiking_form_is_an_error(path):
    with pytest.raises(EdgekitError, match=f"names {path}, which has no spiking form"):
        apply(Spiking(layers=(path,)), model_of(Grouped, 8), Context(data=samples(8)))


def test_other_steps_than_the_units_are_an_error(made):
    with pytest.raises(EdgekitError, match="has units of 4 steps already"):
        apply(Spiking(steps=8, form="temporal"), made["vit"][1], Context())


def test_more_than_a_form_is_not_to_be_had_of_units(made):
    with pytest.raises(EdgekitError, match="exclude cannot be had"):
        apply(Spiking(steps=4, exclude=("blocks.0",)), made["vit"][1], Context())


def test_an_activation_that_overwrites_its_input_is_seen_before_it(made, context):
    source, spiking = made["poolformer"]
    inplace = structure.copied(source)
    for stage in inplace.module.stages:
        stage.blocks[0].mlp.act = nn.SiLU(inplace=True)
    plain = structure.copied(inplace)
    for stage in plain.module.stages:
        stage.blocks[0].mlp.act.inplace = False
    both = [apply(Spiking(steps=4), each, context) for each in (inplace, plain)]
    first, second = (units(each.module) for each in both)
    assert list(first) == list(units(spiking.module))
    for path, unit in first.items():
        assert torch.equal(unit.threshold, second[path].threshold)


def test_without_data_is_an_error(made):
    with pytest.raises(EdgekitError, match="There is no data"):
        apply(Spiking(), made["vit"][0], Context())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_named(value, context):
    source = model_of(vit)
    with torch.no_grad():
        source.module.blocks[1].mlp.fc1.bias[0] = value
    with pytest.raises(EdgekitError, match=r"blocks.1.mlp.act: .* not finite"):
        apply(Spiking(steps=4), source, context)


def test_the_digits_keep_their_accuracy_by_calibration_alone(digits_evaluation):
    """Within a point of fp32 at 16 steps."""
    model, calibration, evaluation = digits_evaluation
    step = Spiking(steps=16, samples=64, batch_size=32)
    spiking = apply(step, model, Context(data=calibration))
    assert right(spiking, evaluation) >= right(model, evaluation) - 0.01


def right(model, evaluation):
    """The share of samples whose class is found."""
    found = 0
    with torch.no_grad():
        for each in batches(evaluation, 60):
            found += int((outputs(model.module, each)[0].argmax(1) == each.labels).sum())
    return found / len(evaluation)


@pytest.fixture
def digits_evaluation(tmp_path, monkeypatch):
    """The shipped ViT, and the images that it did not learn from."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from digits import write

    write(tmp_path)
    model = families.load(f"timm/{EXAMPLES / 'digits_vit'}", Options())
    splits = ("calibration", "evaluation")
    return model, *(data.open_data(tmp_path / s, model.inputs, model.preprocess) for s in splits)


class Around(nn.Module):
    """What is exported in a module's place, on the same layers."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def test_what_is_exported_takes_the_same_units():
    module = poolformer().eval()
    spec = Input("x", (1, 2, 16, 16))
    model = Model(module, (spec,), ("y",), "around", traced=Around(module))
    samples = data.random_data(model.inputs, 4, 0)
    made = apply(Spiking(steps=4), model, Context(data=samples))
    assert made.traced is not None
    assert [f"module.{path}" for path in units(made.module)] == list(units(made.traced))
    x = torch.rand(2, 2, 16, 16)
    assert torch.equal(made.module(x), made.traced(x))

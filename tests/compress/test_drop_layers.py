"""DropLayers: which blocks go, what takes their places, and what the rest starts as."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from edgekit import families
from edgekit.compress import Context, apply, measure, parse, structure
from edgekit.compress.depth import stacks
from edgekit.compress.drop_layers import DropLayers
from edgekit.compress.modules.skip import Skip
from edgekit.data import open_data, random_data
from edgekit.errors import EdgekitError
from edgekit.families import Options
from edgekit.model import Input, Model
from edgekit.work import export

sys.path.insert(0, str(Path(__file__).parents[1] / "families" / "diffusion"))

import small

DEPTH = 6


def digits_vit(digits_model, depth=DEPTH):
    options = Options(random_weights=True, arguments={"depth": depth})
    return families.load(f"timm/{digits_model}", options)


@pytest.fixture
def vit(digits_model):
    """A ViT of which blocks 1 and 4 do nothing."""
    torch.manual_seed(0)
    model = digits_vit(digits_model)
    for block in model.module.blocks:
        nn.init.normal_(block.mlp.fc2.weight, std=0.3)
    for place in (1, 4):
        for layer in (model.module.blocks[place].attn.proj, model.module.blocks[place].mlp.fc2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


@pytest.fixture
def context(vit, digits_folder):
    return Context(data=open_data(digits_folder, vit.inputs, vit.preprocess))


def gone(model, path):
    """The places of a stack whose blocks were dropped."""
    blocks = model.module.get_submodule(path)
    return [place for place, block in enumerate(blocks) if isinstance(block, Skip)]


def call(model, batch=2):
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for spec in model.inputs:
        shape = spec.concrete(batch) if spec.shape[0] != 1 else (batch, *spec.concrete()[1:])
        if spec.dtype == "int64":
            inputs[spec.name] = torch.randint(2, 60, shape, generator=generator)
        else:
            inputs[spec.name] = torch.rand(shape, generator=generator)
    with torch.no_grad():
        result = model.module(**inputs)
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(call(first), call(second), strict=True))


def saved_and_loaded(fresh, original, made):
    described = json.loads(json.dumps(structure.describe(original.module, made.module)))
    restored = structure.restore(fresh.module, described)
    state = {name: value.clone() for name, value in structure.tensors(made.module).items()}
    structure.load(restored, state, "here")
    return dataclasses.replace(fresh, module=restored.eval())


# Which blocks go


@pytest.mark.parametrize("remeasure", [True, False])
@pytest.mark.parametrize("amount", [{"count": 2}, {"ratio": 0.34}])
def test_blocks_that_do_nothing_go_first(amount, remeasure, vit, context):
    step = DropLayers(**amount, remeasure=remeasure, samples=8)
    made = apply(step, vit, context)
    assert gone(made, "blocks") == [1, 4]
    assert same(vit, made)
    assert measure.parameters(made.module) < 0.75 * measure.parameters(vit.module)
    assert not gone(vit, "blocks")


def test_effects_are_measured_again_when_a_block_is_gone(vit, context):
    """Blocks 0 and 3 undo each other: without 3, the loss of 0 is no longer felt alone."""

    class Add(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.layer = nn.Linear(1, 1)
            nn.init.zeros_(self.layer.weight)
            nn.init.constant_(self.layer.bias, value)

        def forward(self, x):
            return x + self.layer(x)

    # Alone, leaving out 1.0 or -1.0 moves the outputs by 1; both together by nothing.
    module = nn.Sequential(*map(Add, (1.0, -1.0, 0.9)))
    model = Model(module.eval(), (Input("input", (1, 1)),), ("y",), "toy")
    data = open_data([{"input": np.array([5.0], np.float32)}], model.inputs, None)
    wrapped = dataclasses.replace(model, module=Named(module))
    assert picked(wrapped, data, remeasure=True) == [1, 2]
    assert picked(wrapped, data, remeasure=False) == [0, 2]


class Named(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks

    def forward(self, input):
        return self.blocks(input)


def picked(model, data, **options):
    made = apply(DropLayers(count=2, **options), model, Context(data=data))
    return gone(made, "blocks")


class Gated(nn.Module):
    """Acts on one half of the timesteps only."""

    def __init__(self, late, size):
        super().__init__()
        self.late, self.layer = late, nn.Linear(4, 4)
        nn.init.zeros_(self.layer.weight)
        nn.init.constant_(self.layer.bias, size)

    def forward(self, x, t):
        return x + self.layer(x) * ((t > 0.5) == self.late).float()[:, None]


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Gated(False, 2.0), Gated(True, 1.0)])
        self.calls = []

    def forward(self, x, timestep):
        self.calls.append(len(x))
        for block in self.blocks:
            x = block(x, timestep)
        return x


@pytest.fixture
def denoiser():
    inputs = (Input("x", (1, 4)), Input("timestep", (1,)))
    return Model(Denoiser().eval(), inputs, ("y",), "toy")


def noisy(early, late):
    """Samples of early and of late timesteps."""
    times = [0.1] * early + [0.9] * late
    ones = np.ones((len(times), 4), np.float32)
    return {"x": ones, "timestep": np.array(times, np.float32)}


def test_every_level_of_noise_counts_the_same(denoiser):
    """The first block matters at early timesteps, the second half as much at late ones."""
    data = open_data(noisy(1, 19), denoiser.inputs, None)
    for timesteps, expected in (("levels", [1]), ("samples", [0])):
        step = DropLayers(count=1, timesteps=timesteps)
        assert gone(apply(step, denoiser, Context(data=data)), "blocks") == expected


def test_a_stopped_measurement_goes_on(denoiser, tmp_path):
    data = open_data(noisy(3, 3), denoiser.inputs, None)
    context = Context(data=data, folder=tmp_path)
    first = apply(DropLayers(count=1), denoiser, context)
    again = apply(DropLayers(count=1), denoiser, context)
    assert len(again.module.calls) < len(first.module.calls)
    assert gone(first, "blocks") == gone(again, "blocks")
    other = open_data(noisy(2, 3), denoiser.inputs, None)
    anew = apply(DropLayers(count=1), denoiser, dataclasses.replace(context, data=other))
    assert len(anew.module.calls) == len(first.module.calls)


# What the rest starts as


def test_a_kept_block_starts_as_the_mean_of_what_it_stands_for(vit):
    made = apply(DropLayers(keep=(0, 2, 5), average=True), vit, Context())
    before = [block.mlp.fc1.weight for block in vit.module.blocks]
    after = [made.module.blocks[place].mlp.fc1.weight for place in (0, 2, 5)]
    # 1 is as near to 0 as to 2, and the earlier one stands for it.
    groups = ([0, 1], [2, 3], [5, 4])
    for mean, group in zip(after, groups, strict=True):
        torch.testing.assert_close(mean, torch.stack([before[i] for i in group]).mean(0))


def test_without_averaging_kept_blocks_are_as_they_were(vit):
    made = apply(DropLayers(keep=(0, 2, 5)), vit, Context())
    for place in (0, 2, 5):
        kept = made.module.blocks[place].state_dict()
        for name, value in vit.module.blocks[place].state_dict().items():
            assert torch.equal(value, kept[name])


def test_only_blocks_of_one_kind_are_averaged(tmp_path):
    """Jamba's second layer is attention: it stands for no other."""
    model = families.load(f"transformers/{tiny.save('jamba', tmp_path)}", Options())
    made = apply(DropLayers(keep=(1, 2), average=True), model, Context())
    layers, kept = model.module.model.model.layers, made.module.model.model.layers
    assert gone(made, "model.model.layers") == [0]
    for name, value in layers[1].state_dict().items():
        assert torch.equal(value, kept[1].state_dict()[name])


# All kinds of models


def test_the_result_is_saved_and_loaded(vit, context, digits_model):
    made = apply(DropLayers(count=3, samples=8, average=True), vit, context)
    assert same(made, saved_and_loaded(digits_vit(digits_model), vit, made))


def test_dropping_twice_is_dropping_once(vit, context, digits_model):
    first = apply(DropLayers(keep=(0, 2, 3, 5)), vit, context)
    second = apply(DropLayers(keep=(0, 3)), first, context)
    assert gone(second, "blocks") == [1, 2, 4, 5]
    once = apply(DropLayers(keep=(0, 3)), vit, context)
    assert same(once, second)
    assert same(second, saved_and_loaded(digits_vit(digits_model), vit, second))


@pytest.mark.parametrize(("name", "length"), [("llama", 16), ("jamba", 128)])
def test_a_language_model_runs_and_exports(name, length, tmp_path):
    folder = tiny.save(name, tmp_path, num_hidden_layers=3)
    options = Options(inputs=(Input("input_ids", (1, 16), "int64"),) if name == "llama" else ())
    model = families.load(f"transformers/{folder}", options)
    (stack,) = stacks.chosen(model, "*")
    made = apply(DropLayers(keep=(1, 2)), model, Context())
    assert gone(made, stack.path) == [0]
    fresh = families.load(f"transformers/{folder}", options)
    assert same(made, saved_and_loaded(fresh, model, made))
    tokens = np.random.default_rng(0).integers(2, 60, (1, length))
    exported = export(made).run({"input_ids": tokens})["logits"]
    with torch.no_grad():
        (expected,) = made.module(input_ids=torch.from_numpy(tokens))
    np.testing.assert_allclose(exported, expected, atol=2e-4)


def test_a_layers_mask_stays_with_it(tmp_path):
    """Without Jamba's first layer, the second still gets the mask of attention, by its place."""
    model = families.load(f"transformers/{tiny.save('jamba', tmp_path)}", Options())
    made = apply(DropLayers(keep=(1, 2)), model, Context())
    own = model.module.model.model
    with torch.no_grad():
        tokens = torch.randint(2, 60, (1, 128), generator=torch.Generator().manual_seed(0))
        late = tokens.clone()
        late[:, -1] = 2
        (first,), (second,) = made.module(input_ids=tokens), made.module(input_ids=late)
    assert own.config.layer_types[1] == "full_attention"
    assert torch.equal(first[:, :-1], second[:, :-1])
    assert not torch.equal(first[:, -1], second[:, -1])


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("qwen_image", ["model.transformer_blocks"]),
        ("flux", ["model.transformer_blocks", "model.single_transformer_blocks"]),
        ("ltx2", ["model.transformer_blocks"]),
        ("hidream", ["model.double_stream_blocks"]),
    ],
)
def test_both_streams_pass_where_a_dual_block_was(name, paths, tmp_path):
    folder, sizes = small.write(name, tmp_path)
    options = Options(random_weights=True, arguments=sizes)
    model = families.load(f"diffusers/{folder}", options)
    found = stacks.chosen(model, "*")
    assert [stack.path for stack in found] == paths
    made = apply(DropLayers(keep=(1,), stack=paths[0]), model, Context())
    assert gone(made, paths[0]) == [0]
    assert same(made, saved_and_loaded(families.load(f"diffusers/{folder}", options), model, made))
    assert not same(model, made)
    # A block whose gates are shut does nothing either.
    with torch.no_grad():
        for parameter in model.module.get_submodule(paths[0])[0].parameters():
            parameter.zero_()
    for a, b in zip(call(model), call(made), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_block_that_ends_a_stream_stays(tmp_path):
    folder, sizes = small.write("sd3", tmp_path)
    arguments = {**sizes, "num_layers": 4, "dual_attention_layers": []}
    options = Options(random_weights=True, arguments=arguments)
    model = families.load(f"diffusers/{folder}", options)
    (stack,) = stacks.chosen(model, "*")
    assert (list(stack.skips), stack.fixed) == ([0, 1, 2], (3,))
    made = apply(
        DropLayers(ratio=0.6, samples=2), model, Context(data=random_data(model.inputs, 2, 0))
    )
    assert 3 not in gone(made, stack.path)
    assert len(gone(made, stack.path)) == 2


def test_of_stacks_in_blocks_of_a_stack_the_inmost_are_taken(tmp_path):
    arguments = {"img_size": 240, "depth": [[1, 2, 0], [1, 2, 0]], "embed_dim": [16, 32],
                 "num_heads": [2, 2], "num_classes": 10}  # fmt: skip
    model = families.load("timm/crossvit_9_240", Options(random_weights=True, arguments=arguments))
    data = Context(data=random_data(model.inputs, 4, 0))
    inner = ["blocks.0.blocks.1", "blocks.1.blocks.1"]
    assert [stack.path for stack in stacks.chosen(model, "*")] == inner
    made = apply(DropLayers(count=2), model, data)
    assert [len(gone(made, path)) for path in inner] == [1, 1]
    outer = apply(DropLayers(count=1, stack="blocks"), model, data)
    assert len(gone(outer, "blocks")) == 1
    assert call(outer)[0].shape == (2, 10)


def test_parallel_experts_are_no_stack():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3))

        def forward(self, x):
            return sum(expert(x) for expert in self.experts)

    model = Model(Experts().eval(), (Input("x", (1, 4)),), ("y",), "toy")
    with pytest.raises(EdgekitError, match="no stack of blocks") as caught:
        apply(DropLayers(keep=(0,)), model, Context())
    assert "experts" in caught.value.why


# What cannot be done


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "one of count, ratio and keep"),
        ({"count": 1, "ratio": 0.5}, "Given: count, ratio"),
        ({"count": 0}, "count is 0"),
        ({"ratio": 1.0}, "ratio is 1.0"),
        ({"count": 1, "samples": 0}, "samples is 0"),
    ],
)
def test_options_that_make_no_sense(options, text):
    with pytest.raises(EdgekitError, match=text):
        DropLayers(**options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"count": 6}, "Drop 1 to 5"),
        ({"ratio": 0.05}, "Drop 1 to 5"),
        ({"keep": (0, 9)}, "0, 1, 2, 3, 4, 5"),
        ({"keep": (0, 1, 2, 3, 4, 5)}, "not of all"),
        ({"count": 1, "stack": "layers"}, "blocks \\(6 blocks\\)"),
    ],
)
def test_what_a_model_has_not(options, text, vit, context):
    with pytest.raises(EdgekitError, match=text):
        apply(DropLayers(**options), vit, context)


def test_effects_need_data(vit):
    with pytest.raises(EdgekitError, match="--calibration"):
        apply(DropLayers(count=1), vit, Context())


def test_a_stream_is_refused(tmp_path):
    model = families.load(f"transformers/{tiny.save('mamba', tmp_path)}", Options(mode="stream"))
    with pytest.raises(EdgekitError, match="is a stream"):
        apply(DropLayers(keep=(0,)), model, Context())


def test_it_is_read_from_a_flag():
    assert parse("drop_layers:keep=[0,2],average=true") == DropLayers(keep=(0, 2), average=True)

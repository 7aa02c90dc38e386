"""prune: what it promises of the model that it gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch

from edgekit import targets
from edgekit.compress import Context, Cost, apply, measure, parse, structure
from edgekit.compress.batches import batch, batches, outputs
from edgekit.compress.prune import Prune
from edgekit.data import Dataset, open_data, random_data
from edgekit.errors import EdgekitError
from edgekit.families import Options, load
from edgekit.model import Input, Model


@pytest.fixture(scope="module")
def digits(digits_model: Path) -> Model:
    return load(f"timm/{digits_model}", Options())


@pytest.fixture(scope="module")
def images(digits: Model, digits_folder: Path) -> Dataset:
    return open_data(digits_folder, digits.inputs, digits.preprocess).take(48, 0)


@pytest.fixture(scope="module")
def context(images: Dataset) -> Context:
    return Context(data=images)


@pytest.fixture(scope="module")
def halved(digits: Model, context: Context) -> Model:
    return apply(Prune(parameters=0.6), digits, context)


def test_the_source_stays_as_it_is(digits, halved) -> None:
    assert digits.module.blocks[0].mlp.fc1.out_features == 192
    assert measure.parameters(halved.module) < measure.parameters(digits.module)
    assert halved.history == ("prune:parameters=0.6",)


def test_layers_are_dense_and_smaller_in_the_exported_graph(digits, halved, images) -> None:
    graph = halved.export()
    held = sum(value.numel() for value in graph.exported.state_dict.values())
    assert held <= 0.61 * sum(p.numel() for p in digits.module.state_dict().values())
    sample = {name: value[None] for name, value in images.read(0).items()}
    expected = outputs(halved.module, batch(images, [0]))[0].detach()
    torch.testing.assert_close(torch.from_numpy(graph.run(sample)["logits"]), expected)


@pytest.mark.parametrize("source", ["digits", "llama", "mamba2", "vision_mamba", "crossvit"])
def test_what_is_saved_is_restored_exactly(source, digits, images, tmp_path) -> None:
    model, data = _source(source, digits, images, tmp_path)
    made = apply(Prune(ratio=0.4, batch_size=4), model, Context(data=data))
    described = json.loads(json.dumps(structure.describe(model.module, made.module)))
    fresh, _ = _source(source, None, images, tmp_path)
    fresh_module = structure.restore(fresh.module, described)
    structure.load(fresh_module, structure.tensors(made.module), "saved")
    samples = batch(data, [0, 1])
    with torch.no_grad():
        pairs = zip(outputs(made.module, samples), outputs(fresh_module, samples), strict=True)
        assert all(torch.equal(first, second) for first, second in pairs)


def _source(
    name: str, digits: Model | None, images: Dataset, folder: Path
) -> tuple[Model, Dataset]:
    """A model and data for it."""
    arguments: dict[str, object]
    if name == "digits":
        anew = Options(random_weights=True, arguments=DIGITS)
        return digits or load("timm/vit_tiny_patch16_224", anew), images
    if name == "vision_mamba":
        arguments = {"image_size": [8, 8], "patch": [2, 8], "width": 16, "depth": 2, "state": 8}
        model = load("reference/vision_mamba", Options(random_weights=True, arguments=arguments))
    elif name == "crossvit":
        model = load("timm/crossvit_tiny_240", Options(random_weights=True, arguments=CROSSVIT))
    else:
        home = folder / name
        source = home if home.exists() else tiny.save(name, folder)
        inputs = (Input("input_ids", (1, 12), "int64"),)
        model = load(f"transformers/{source}", Options(inputs=inputs))
    return model, random_data(model.inputs, 8, 0)


DIGITS = {
    "img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3,
    "num_classes": 10, "in_chans": 1,
}  # fmt: skip
CROSSVIT = {
    "img_size": 16,
    "patch_size": (4, 8),
    "img_scale": (1.0, 1.0),
    "embed_dim": (16, 24),
    "depth": ((1, 1, 0),),
    "num_heads": (2, 2),
    "mlp_ratio": (2, 2, 1),
    "num_classes": 5,
}


@pytest.mark.parametrize("share", [0.9, 0.5])
def test_budgets_of_parameters_and_flops_are_met_closely(share, digits, context) -> None:
    for name, of in (("parameters", _parameters), ("flops", measure.operations)):
        made = apply(Prune(**{name: share}), digits, context)
        assert 0.85 * share < of(made) / of(digits) <= share


def _parameters(model: Model) -> int:
    return measure.parameters(model.module)


def test_a_count_is_a_budget_too(digits, context) -> None:
    made = apply(Prune(parameters=40_000, importance="magnitude", refit=False), digits, context)
    assert measure.parameters(made.module) <= 40_000


def test_a_budget_that_is_met_already_changes_nothing(digits, context, images) -> None:
    made = apply(Prune(parameters=10**9), digits, context)
    assert measure.relative_error(digits, made, images) == 0


def test_latency_is_measured_and_met(digits, images) -> None:
    asked: list[float] = []

    def clock(model: Model) -> Cost:
        asked.append(1e-5 * measure.operations(model))
        return Cost(asked[-1], "measured by counting")

    whole = clock(digits).milliseconds
    context = Context(data=images, latency=clock)
    made = apply(Prune(latency=0.6 * whole), digits, context)
    assert 0.5 * whole < clock(made).milliseconds <= 0.6 * whole
    assert len(asked) <= 12


@pytest.mark.parametrize("budget", ["parameters", "flops", "latency"])
def test_a_budget_out_of_reach_names_the_least(budget, digits, images) -> None:
    context = Context(data=images, latency=lambda model: Cost(1.0, "measured by no clock"))
    with pytest.raises(EdgekitError, match="cannot be met") as raised:
        apply(Prune(**{budget: 0.01}), digits, context)
    assert {"parameters": "weights", "flops": "multiply", "latency": "1.000 ms"}[budget] in str(
        raised.value
    )


@pytest.mark.parametrize(("asked", "target", "multiple"), [(4, None, 4), (None, "rtx-4090", 16)])
def test_widths_are_multiples(asked, target, multiple, digits, images) -> None:
    device = None if target is None else targets.load(target)
    made = apply(Prune(ratio=0.4, round_to=asked), digits, Context(data=images, target=device))
    found = [block.mlp.fc1.out_features for block in made.module.blocks]
    assert all(width % multiple == 0 and width < 192 for width in found)


def test_excluded_modules_stay(digits, context) -> None:
    made = apply(Prune(ratio=0.4, exclude=("blocks.0*",)), digits, context)
    assert made.module.blocks[0].mlp.fc1.out_features == 192
    assert made.module.blocks[0].attn.num_heads == 3
    assert made.module.blocks[1].mlp.fc1.out_features < 192
    with pytest.raises(EdgekitError, match="no module"):
        apply(Prune(ratio=0.4, exclude=("layers.0",)), digits, context)


def test_only_named_dimensions_shrink(digits, context) -> None:
    made = apply(Prune(ratio=0.4, dimensions=("embedding",)), digits, context)
    width = made.module.patch_embed.proj.out_channels
    assert width < 48
    assert made.module.head.in_features == width
    assert all(block.mlp.fc1.out_features == 192 for block in made.module.blocks)
    with pytest.raises(EdgekitError, match="no state that can be pruned"):
        apply(Prune(ratio=0.4, dimensions=("state",)), digits, context)


def test_refit_keeps_outputs_closer(digits, context, images) -> None:
    errors = [
        measure.relative_error(
            digits, apply(Prune(parameters=0.6, refit=fitted), digits, context), images
        )
        for fitted in (True, False)
    ]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("importance", ["taylor", "activation"])
def test_what_matters_least_goes_first(importance, digits, context, images) -> None:
    options = {"parameters": 0.8, "refit": False, "dimensions": ("mlp",)}
    made = apply(Prune(**options, importance=importance), digits, context)
    backwards = apply(_Backwards(**options, importance=importance), digits, context)
    error = [measure.relative_error(digits, model, images) for model in (made, backwards)]
    assert error[0] < error[1]


class _Backwards(Prune):
    """The most important items first."""

    def call(self, model: Model, context: Context) -> Model:
        from edgekit.compress.pruning.work import Work

        class Other(Work):
            def _scores(self):  # type: ignore[no-untyped-def]
                found = super()._scores()
                return {group: 1 / (scores + 1e-12) for group, scores in found.items()}

        return Other(self, structure.copied(model), context).result()


def test_magnitude_needs_no_data(digits) -> None:
    made = apply(Prune(ratio=0.3, importance="magnitude"), digits, Context())
    assert measure.parameters(made.module) < measure.parameters(digits.module)
    with pytest.raises(EdgekitError, match="no data"):
        apply(Prune(ratio=0.3), digits, Context())


def test_grouped_queries_keep_their_grouping(images, tmp_path) -> None:
    model, data = _source("llama", None, images, tmp_path)
    made = apply(Prune(ratio=0.4, dimensions=("heads",)), model, Context(data=data))
    for layer in made.module.model.model.layers:
        attention = layer.self_attn
        queries, keys = attention.q_proj.out_features, attention.k_proj.out_features
        assert queries == 2 * keys == attention.o_proj.in_features
    assert any(layer.self_attn.k_proj.out_features == 8 for layer in made.module.model.model.layers)


@pytest.mark.parametrize(
    "options",
    [
        "", "ratio=0.5,parameters=0.5", "ratio=1.5", "flops=-1", "ratio=0.5,round_to=0",
        "ratio=0.5,samples=0", "ratio=0.5,dimensions=[]", "ratio=0.5,dimensions=[tails]",
        "ratio=0.5,importance=guess", "latency=1",
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options, digits, context) -> None:
    with pytest.raises(EdgekitError):
        apply(parse(f"prune:{options}"), digits, context)


def test_the_same_seed_gives_the_same_model(digits, context) -> None:
    first, second = (apply(Prune(ratio=0.4), digits, context).module for _ in range(2))
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_batch_size_does_not_change_what_is_fitted(digits, images, context) -> None:
    one, all_at_once = (
        apply(
            Prune(parameters=0.6, importance="magnitude", batch_size=size), digits, context
        ).module
        for size in (5, 48)
    )
    samples = next(batches(images, 8))
    with torch.no_grad():
        first, second = outputs(one, samples)[0], outputs(all_at_once, samples)[0]
    torch.testing.assert_close(first, second, rtol=0, atol=1e-3)

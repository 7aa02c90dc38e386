"""What is taken out of a model of each kind is taken out rightly, in float64 where it runs so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

from edgekit.compress import structure
from edgekit.compress.batches import Batch, batch, outputs
from edgekit.compress.modules import cross_attention
from edgekit.compress.pruning import blocks, graph, surgery
from edgekit.compress.pruning.groups import Group
from edgekit.data import random_data
from edgekit.families import Options, load
from edgekit.model import Model

CROSSVIT = {
    "img_size": 16,
    "patch_size": (4, 8),
    "img_scale": (1.0, 1.0),
    "embed_dim": (16, 24),
    "depth": ((1, 1, 0),),
    "num_heads": (2, 2),
    "mlp_ratio": (2, 2, 1),
    "num_classes": 5,
    "in_chans": 1,
}
VIT = {
    "img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3,
    "num_classes": 5, "in_chans": 1,
}  # fmt: skip
MAMBA = {
    "image_size": [8, 8], "patch": [2, 8], "classes": 5, "width": 16, "depth": 2, "state": 4,
    "pool": "mean", "mean": [0.5], "std": [0.5],
}  # fmt: skip
HIERA = {
    "img_size": 32, "embed_dim": 16, "num_heads": 2, "stages": (1, 1), "q_pool": 1,
    "mask_unit_size": (4, 4), "num_classes": 5,
}  # fmt: skip


def timm(name: str, arguments: dict[str, object]) -> Callable[[Path], Model]:
    return lambda _: load(f"timm/{name}", Options(random_weights=True, arguments=arguments))


def causal(name: str) -> Callable[[Path], Model]:
    return lambda folder: load(f"transformers/{tiny.save(name, folder)}", Options())


MODELS: dict[str, tuple[Callable[[Path], Model], set[str]]] = {
    "vit": (timm("vit_tiny_patch16_224", VIT), {"heads", "mlp", "embedding"}),
    "crossvit": (timm("crossvit_tiny_240", CROSSVIT), {"heads", "mlp", "embedding"}),
    "hiera": (timm("hiera_tiny_224", HIERA), {"heads", "mlp", "embedding"}),
    "resnet": (timm("resnet10t", {"num_classes": 5}), {"channels"}),
    "vision_mamba": (
        lambda _: load("reference/vision_mamba", Options(random_weights=True, arguments=MAMBA)),
        {"channels", "state", "embedding"},
    ),
    "llama": (causal("llama"), {"heads", "mlp", "embedding"}),
    "mamba": (causal("mamba"), {"channels", "state", "embedding"}),
    "mamba2": (causal("mamba2"), {"heads", "state", "embedding"}),
    "jamba": (causal("jamba"), {"heads", "mlp", "channels", "state"}),
    "falcon_h1": (causal("falcon_h1"), {"heads", "mlp", "state", "embedding"}),
}
#: Their products of experts have no float64.
SINGLE = ("jamba",)


@pytest.fixture(scope="module", params=MODELS)
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, torch.nn.Module, Batch, list[Group]]:
    """A model in float64, two samples, and the groups that may shrink."""
    model = structure.copied(MODELS[request.param][0](tmp_path_factory.mktemp("source")))
    root = model.module.float() if request.param in SINGLE else model.module.double()
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and cross_attention.fits(child):
                parent._modules[name] = cross_attention.take_over(child)
    short = tuple(
        dataclasses.replace(i, shape=tuple(s if isinstance(s, int) else 4 for s in i.shape))
        for i in model.inputs
    )
    samples = batch(random_data(short, 2, 0), [0, 1])
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in samples.inputs.items()}
    held = blocks.find(root)
    one = {name: value[:1] for name, value in inputs.items()}
    layers, _ = graph.layer_groups(root, one, held)
    groups = [group for block in held for group in block.groups] + layers
    named = MODELS[request.param][1]
    wanted = [group for group in groups if group.items > 1 and group.dimension in named]
    return request.param, root, Batch(inputs, None), wanted


def run(root: torch.nn.Module, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([each.double().flatten() for each in outputs(root, batch)])


def without_norm_casts(name: str) -> float:
    """transformers' recurrences and normalisations compute in float32 whatever they are given."""
    return 1e-4 if name in tiny.TINY else 1e-10


def test_every_dimension_of_the_model_is_found(found) -> None:
    name, _, _, groups = found
    assert MODELS[name][1] <= {group.dimension for group in groups}


def test_order_of_items_does_not_matter(found) -> None:
    name, root, batch, groups = found
    before = run(root, batch)
    undo = surgery.reorder(root, groups, 1)
    try:
        after = run(root, batch)
    finally:
        undo.put_back()
    torch.testing.assert_close(after, before, rtol=0, atol=without_norm_casts(name))
    assert torch.equal(run(root, batch), before)


def test_without_items_is_as_with_them_at_zero(found) -> None:
    name, root, batch, groups = found
    gone = {g: torch.arange(g.items // 2) for g in groups if g.separate}
    undo = surgery.silence(root, gone)
    try:
        expected = run(root, batch)
    finally:
        undo.put_back()
    full = run(root, batch)
    assert float((expected - full).abs().max()) > 100 * without_norm_casts(name)
    undo = surgery.shrink(root, gone)
    try:
        actual = run(root, batch)
    finally:
        undo.put_back()
    torch.testing.assert_close(actual, expected, rtol=0, atol=without_norm_casts(name))
    assert torch.equal(run(root, batch), full)

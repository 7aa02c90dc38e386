"""select_first: equal in float64, and the work of the other tokens is gone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.compress.modules.qcfs import QCFS
from edgekit.converters.rewrites.select_first import rewrite
from edgekit.edit import Editor
from edgekit.model import BATCH, Input, Model

TOKENS, WIDTH = 6, 8
X = np.random.default_rng(0).standard_normal((3, TOKENS, WIDTH))


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.qkv, self.proj = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.up, self.down = torch.nn.Linear(WIDTH, 16), torch.nn.Linear(16, WIDTH)
        self.activation = torch.nn.GELU()

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, n, c))
        return x + self.down(self.activation(self.up(self.norm2(x))))


class Classifier(torch.nn.Module):
    def __init__(self, token, also_mean=False):
        super().__init__()
        self.blocks = torch.nn.Sequential(Block(), Block())
        self.norm, self.head = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, 5)
        self.token, self.also_mean = token, also_mean

    def forward(self, x):
        x = self.norm(self.blocks(x))
        y = self.head(x[:, self.token])
        return y + x.mean() if self.also_mean else y


def export(module, batch=3):
    torch.manual_seed(0)
    inputs = (Input("x", (batch, TOKENS, WIDTH), "float64"),)
    return Model(module.double(), inputs, ("y",), "test").export()


def tokens_of(graph, module):
    """Tokens that enter a linear of the last block."""
    for node in Editor(graph).calls("aten.linear.default"):
        if module in str(list(node.meta["nn_module_stack"].values())[-1]):
            yield node.args[0].meta["val"].shape[1]


@pytest.mark.parametrize("batch", [3, BATCH])
@pytest.mark.parametrize("token", [0, 4])
def test_equal_in_float64_with_less_work(token, batch):
    graph = export(Classifier(token), batch)
    rewritten = rewrite(graph)
    before, after = graph.run({"x": X})["y"], rewritten.run({"x": X})["y"]
    assert np.abs(before - after).max() < 1e-12
    for module in ("blocks.1.proj", "blocks.1.up", "blocks.1.down"):
        assert list(tokens_of(rewritten, module)) == [1]
    assert list(tokens_of(rewritten, "blocks.1.qkv")) == [TOKENS]
    assert list(tokens_of(rewritten, "blocks.0.down")) == [TOKENS]


def test_nothing_moves_past_a_value_that_is_read_elsewhere():
    graph = export(Classifier(0, also_mean=True))
    rewritten = rewrite(graph)
    assert np.abs(graph.run({"x": X})["y"] - rewritten.run({"x": X})["y"]).max() < 1e-12
    assert list(tokens_of(rewritten, "blocks.1.down")) == [TOKENS]


@pytest.mark.parametrize("axis", [-1, 2])
def test_a_spiking_unit_counts_for_its_token_only(axis):
    module = Classifier(0)
    for block in module.blocks:
        block.activation = QCFS(16, axis, 4, 0.125, False, "folded")
    graph = export(module)
    written = rewrite(graph)
    np.testing.assert_allclose(written.run({"x": X})["y"], graph.run({"x": X})["y"], rtol=1e-9)
    sizes = [n.meta["val"].shape[1] for n in Editor(written).calls("edgekit.qcfs.default")]
    assert sizes == [TOKENS, 1]


def test_thresholds_along_the_tokens_keep_them_all():
    module = Classifier(0)
    module.blocks[1].activation = QCFS(TOKENS, 1, 4, 0.125, False, "folded")
    written = rewrite(export(module))
    (unit,) = Editor(written).calls("edgekit.qcfs.default")
    assert unit.meta["val"].shape[1] == TOKENS

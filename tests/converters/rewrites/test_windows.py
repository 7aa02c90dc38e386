"""converters/rewrites/windows: unfold and fold are equal to what they replace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgekit.converters.rewrites.windows import rewrite
from edgekit.model import BATCH, Dim, Input, Model


class Unfold(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.unfold(2, 5, 3).unfold(-2, 4, 4) * 2


class Fold(torch.nn.Module):
    """Overlapping blocks; the last rows and columns belong to none."""

    def __init__(self, kernel: tuple[int, int], stride: int, padding: int, dilation: int) -> None:
        super().__init__()
        self.options = {
            "kernel_size": kernel,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blocks = F.unfold(x, **self.options).relu()
        return F.fold(blocks, x.shape[-2:], **self.options)


FOLDS = [((3, 3), 2, 1, 1), ((2, 4), 3, 0, 1), ((3, 2), 1, 2, 2)]


@pytest.mark.parametrize(
    "module", [Unfold(), *(Fold(*options) for options in FOLDS)], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize("batch", [2, BATCH])
def test_windows_are_equal_and_gone(module: torch.nn.Module, batch: int | Dim) -> None:
    model = Model(module, (Input("x", (batch, 3, 16, 13)),), ("y",), "test")
    graph = model.export()
    rewritten = rewrite(graph)
    operators = {str(node.target) for node in rewritten.exported.graph.nodes}
    assert not operators & {"aten.unfold.default", "aten.col2im.default"}
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 13)).astype(np.float32)
    np.testing.assert_allclose(rewritten.run({"x": x})["y"], graph.run({"x": x})["y"], atol=1e-5)

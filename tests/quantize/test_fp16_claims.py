"""quantize/fp16: models whose own code casts."""

from __future__ import annotations

import numpy as np
import torch

from edgekit.model import Input, Model
from edgekit.quantize.fp16 import rewrite_fp16


class Casting(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x.to(self.proj.weight.dtype)).float() * 2


def test_a_model_that_casts_to_float32_by_itself_runs_in_fp16() -> None:
    torch.manual_seed(0)
    model = Model(Casting(), (Input("x", (1, 8)),), ("y",), "test")
    graph = model.export()
    claims = [n for n in graph.exported.graph.nodes if "_assert_tensor_metadata" in str(n.target)]
    assert claims, "torch.export no longer writes the assertion that this test is about"
    x = np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32)
    half = rewrite_fp16(graph)
    exact, rounded = graph.run({"x": x})["y"], half.run({"x": x})["y"]
    assert rounded.dtype == np.float32
    assert 0 < np.abs(exact - rounded).max() < 1e-2

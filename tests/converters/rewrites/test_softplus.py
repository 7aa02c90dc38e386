"""softplus: equal to torch's at every size of number, small results with all their digits."""

from __future__ import annotations

import torch

from edgekit.converters.rewrites import softplus
from edgekit.model import Input, Model

X = torch.cat([torch.linspace(-80, 80, 4001), torch.logspace(-6, 2, 200), torch.tensor([1e4])])


class Two(torch.nn.Module):
    def forward(self, x):
        function = torch.nn.functional.softplus
        return function(x), function(x, beta=2.0)


def test_equals_torchs():
    x = X.double()
    torch.testing.assert_close(
        softplus.softplus(x), torch.logaddexp(x, torch.zeros(())), rtol=1e-8, atol=0
    )
    torch.testing.assert_close(softplus.softplus(X).double(), torch.log1p(torch.exp(x)).where(
        x < 40, x
    ), rtol=5e-7, atol=0)  # fmt: skip


def test_only_the_usual_one_is_written_out():
    graph = Model(Two(), (Input("x", (1, 8)),), ("a", "b"), "two").export()
    rewritten = softplus.rewrite(graph)
    names = [str(node.target) for node in rewritten.exported.graph.nodes]
    assert names.count("aten.softplus.default") == 1
    feed = {"x": torch.linspace(-9, 30, 8)[None].numpy()}
    for name, expected in graph.run(feed).items():
        torch.testing.assert_close(
            torch.from_numpy(rewritten.run(feed)[name]), torch.from_numpy(expected)
        )

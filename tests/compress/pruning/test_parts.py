"""The parts of pruning, each on layers small enough to know the answer."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from edgekit.compress.batches import Batch
from edgekit.compress.pruning import budget, importance, refit, surgery, widths
from edgekit.compress.pruning.graph import layer_groups
from edgekit.compress.pruning.groups import Group, Port, Slice
from edgekit.compress.pruning.proof import proven
from edgekit.compress.pruning.widths import Step


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.fixture
def mlp() -> Mlp:
    return Mlp().eval()


@pytest.fixture
def samples() -> Batch:
    return Batch({"x": torch.randn(32, 6, generator=torch.Generator().manual_seed(1))}, None)


def hidden(mlp: Mlp) -> Group:
    (group,), _ = layer_groups(mlp, {"x": torch.randn(1, 6)}, [])
    return group


def subject(mlp: Mlp, samples: Batch) -> importance.Subject:
    return importance.Subject(mlp, [hidden(mlp)], lambda: iter([samples] * 20), 20, 0)


@pytest.mark.parametrize("measure", importance.MEASURES)
def test_a_channel_that_nothing_reads_matters_least(measure, mlp, samples) -> None:
    with torch.no_grad():
        mlp.second.weight[:, 5] = 0
        mlp.first.weight[5] *= 1e-3
        mlp.first.bias[5] = 0
    looked_at = subject(mlp, samples)
    scores = importance.MEASURES[measure](looked_at)(looked_at.groups[0])
    assert scores.shape == (16,)
    assert int(scores.argmin()) == 5


def test_taylor_ranks_channels_as_taking_them_out_does(mlp, samples) -> None:
    looked_at = subject(mlp, samples)
    (group,) = looked_at.groups
    scores = importance.taylor(looked_at)(group)
    with torch.no_grad():
        before = mlp(**samples.inputs).softmax(1)
        effects = []
        for item in range(group.items):
            undo = surgery.silence(mlp, {group: torch.tensor([item])})
            after = mlp(**samples.inputs).softmax(1)
            undo.put_back()
            effects.append(float((before * (before / after).log()).sum()))
    ranks = [torch.tensor(x).argsort().argsort().double() for x in (scores.tolist(), effects)]
    assert float(torch.corrcoef(torch.stack(ranks))[0, 1]) > 0.9


def test_measuring_leaves_no_gradients(mlp, samples) -> None:
    mlp.first.weight.requires_grad_(False)
    importance.taylor(subject(mlp, samples))
    assert all(parameter.grad is None for parameter in mlp.parameters())
    assert not mlp.first.weight.requires_grad


def test_a_slice_that_is_missing_is_found_out(mlp, samples) -> None:
    whole = hidden(mlp)
    broken = dataclasses.replace(whole, slices=whole.slices[:-1])
    good, left = proven(mlp, [broken], samples)
    assert good == []
    assert [each.dimension for each in left] == ["mlp"]
    assert "order" in left[0].reason
    assert proven(mlp, [whole], samples) == ([whole], [])


def test_a_module_that_counts_on_its_width_is_found_out(samples) -> None:
    class Fixed(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(x)).reshape(len(x), 16))

    module = Fixed().eval()
    good, left = proven(module, [hidden(module)], samples)
    assert good == []
    assert "fewer" in left[0].reason


def test_a_refit_layer_makes_up_for_channels_that_others_hold(mlp, samples) -> None:
    with torch.no_grad():  # channels 8 to 15 are twice channels 0 to 7
        mlp.first.weight[8:] = 2 * mlp.first.weight[:8]
        mlp.first.bias[8:] = 2 * mlp.first.bias[:8]
    gone = {hidden(mlp): torch.arange(8, 16)}
    wanted = refit.layers(gone)
    assert list(wanted) == [mlp.second]
    seen = refit.observe(mlp, wanted, [samples] * 4, 4)
    weight, bias = refit.solved(mlp.second, seen[mlp.second], wanted[mlp.second])
    with torch.no_grad():
        expected = mlp(**samples.inputs)
        surgery.shrink(mlp, gone)
        plain = mlp(**samples.inputs)
        mlp.second.weight.data, mlp.second.bias.data = weight, bias
        fitted = mlp(**samples.inputs)
    assert float((fitted - expected).norm()) < 0.05 * float((plain - expected).norm())


def test_refit_is_least_squares(mlp, samples, monkeypatch) -> None:
    monkeypatch.setattr(refit, "DAMPING", 0.0)
    mlp.double()
    x = torch.relu(mlp.first(samples.inputs["x"].double())).detach()
    moments = refit.Moments(mlp.second)
    moments.products = moments.products.double()
    moments.count, moments.total = len(x), x.sum(0)
    moments.products += x.T @ x
    stays = torch.arange(10)
    weight, bias = refit.solved(mlp.second, moments, stays)
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    best = torch.linalg.lstsq(torch.cat([x[:, :10], ones], 1), mlp.second(x).detach()).solution
    fitted = x[:, :10] @ weight.T + bias
    torch.testing.assert_close(fitted, torch.cat([x[:, :10], ones], 1) @ best, rtol=0, atol=1e-6)


def test_a_tensor_that_is_shared_stays_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 8), nn.Linear(8, 5, bias=False)
            self.head.weight = self.embed.weight

    tied = Tied()
    port = Port(tied.head, "weight", 1)
    group = Group("embed", "embedding", (Slice(port, torch.arange(8)[:, None]),))
    surgery.shrink(tied, {group: torch.tensor([1, 2])})
    assert tied.head.weight is tied.embed.weight
    assert (tied.head.in_features, tied.embed.embedding_dim) == (6, 6)


def test_steps_go_by_loss_for_cost_and_keep_multiples() -> None:
    places = torch.arange(20)[:, None]
    cheap, dear = (
        Group(name, "mlp", (Slice(Port(nn.Linear(1, 20), "weight"), places),)) for name in "ab"
    )
    scores = {group: torch.arange(20, dtype=torch.float64) for group in (cheap, dear)}
    order = widths.path(scores, {cheap: 1.0, dear: 10.0}.__getitem__, lambda group: 8)
    assert order[0].group is dear  # the same loss saves ten times as much
    for group in (cheap, dear):
        own = [step for step in order if step.group is group]
        left = 20
        for step in own:
            left -= len(step.items)
            assert left % 8 == 0
        assert [item for step in own for item in step.items] == list(range(20 - left))
        assert left == 8


@pytest.mark.parametrize("limit", [99.0, 60.0, 31.5])
def test_the_search_stops_at_the_first_that_fits(limit) -> None:
    linear = nn.Linear(1, 90)
    group = Group("a", "mlp", (Slice(Port(linear, "weight"), torch.arange(90)[:, None]),))
    order = [Step(group, (i,), 1.0, 1.0) for i in range(80)]

    def measure(gone: surgery.Removals) -> float:
        return 100.0 - sum(map(len, gone.values()))

    steps, cost, least = budget.search(order, budget.Budget(limit, lambda _: 1.0, measure))
    assert len(steps) == 100 - math.floor(limit)
    assert cost <= limit < cost + 1
    assert least == 20

"""qcfs: its equation, both forms equal bit for bit, spikes that sum to levels, its derivative."""

from __future__ import annotations

import pytest
import torch

from edgekit.operators.qcfs import FORMS, per_threshold, qcfs, spikes, written_out

STEPS = (1, 2, 3, 8, 16, 127)


def values(threshold, steps):
    """Random ones, every boundary of a level with its neighbours in float32, and far-out ones."""
    random = torch.randn(64, len(threshold), generator=torch.Generator().manual_seed(steps))
    ties = (torch.arange(-steps - 2, steps + 3)[:, None] + 0.5) * threshold / steps
    up, down = (torch.nextafter(ties, torch.tensor(end)) for end in (torch.inf, -torch.inf))
    far = torch.tensor([[0.0], [-0.0], [1e30], [-1e30], [1e-30], [-1e-30]]).expand(-1, up.shape[1])
    return torch.cat([random * threshold * 2, ties, up, down, far])


def thresholds(channels):
    return torch.rand(channels, generator=torch.Generator().manual_seed(1)) + 0.25


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("steps", STEPS)
def test_both_forms_are_the_operator_bit_for_bit(steps, channels, signed):
    threshold = thresholds(channels)
    x = values(threshold, steps).expand(-1, 6)
    options = (x, threshold, 0.0625, steps, -1, signed)
    folded, temporal = (written_out(*options, form) for form in FORMS)
    assert torch.equal(folded, temporal)
    assert all(torch.equal(qcfs(*options, form), folded) for form in FORMS)
    levels = (folded / 0.0625).unique().tolist()
    assert levels == list(range(-steps if signed else 0, steps + 1))


@pytest.mark.parametrize("steps", STEPS)
def test_spikes_of_all_steps_sum_to_the_level(steps):
    threshold = thresholds(6)
    x = values(threshold, steps)
    fired = spikes(x * per_threshold(x, threshold, steps, -1), steps)
    assert fired.shape == (steps, *x.shape)
    assert set(fired.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(fired.sum(0), written_out(x, threshold, 1.0, steps, -1, False, "folded"))


def test_the_equation():
    x, threshold = torch.linspace(-3, 3, 301).double(), torch.tensor([1.5]).double()
    want = 0.5 * torch.clamp(torch.floor(4 * x / 1.5 + 0.5), 0, 4)
    assert torch.equal(qcfs(x, threshold, 0.5, 4, 0, False, "folded"), want)


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_passes_the_floor_and_ends_at_the_last_level(form):
    x = torch.tensor([-0.3, -0.1, 0.2, 0.9, 1.1, 1.2], requires_grad=True)
    qcfs(x, torch.ones(1), 0.125, 4, 0, False, form).sum().backward()
    assert x.grad.tolist() == [0.0, 0.5, 0.5, 0.5, 0.5, 0.0]

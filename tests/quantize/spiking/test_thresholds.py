"""Thresholds: of least error, of a share, and of channels that are silent."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from edgekit.errors import EdgekitError
from edgekit.operators.qcfs import qcfs
from edgekit.quantize.spiking.thresholds import find


def values(n=4000):
    """What enters four channels, of other sizes each."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=generator) * torch.tensor([0.5, 1.0, 2.0, 4.0])


def error(x, wanted, threshold, steps, signed):
    """Of each channel, where a level stands for its share of the threshold."""
    levels = qcfs(x, threshold, 1.0, steps, 1, signed, "folded")
    return (levels * threshold / steps - wanted).square().mean(0)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_no_other_threshold_leaves_less_error(steps, signed):
    x = values()
    wanted = x if signed else x.relu()
    found = find(x, wanted, steps, signed, "mse", 99.9)
    least = error(x, wanted, found, steps, signed)
    for share in torch.linspace(0.05, 1, 37).tolist():
        other = error(x, wanted, x.abs().amax(0) * share, steps, signed)
        assert bool((least <= other * 1.03 + 1e-9).all())


def test_more_steps_reach_further():
    x = values()
    found = [find(x, x.relu(), steps, False, "mse", 99.9) for steps in (1, 4, 16, 64)]
    for few, many in pairwise(found):
        assert bool((few < many).all())


def test_thresholds_follow_the_channels():
    x = values()
    for method in ("mse", "percentile"):
        found = find(x, x.relu(), 8, False, method, 99.9)
        doubled = find(x * 2, x.relu() * 2, 8, False, method, 99.9)
        assert torch.equal(doubled, found * 2)
        assert bool((found[1:] > 1.5 * found[:-1]).all())


@pytest.mark.parametrize("percent", [50, 90, 99, 100])
@pytest.mark.parametrize("signed", [False, True])
def test_a_share_of_what_is_above_zero_is_kept(percent, signed):
    x = values(1001)
    found = find(x, x, 8, signed, "percentile", percent)
    for column, threshold in zip(x.T, found, strict=True):
        heights = column.abs() if signed else column[column > 0]
        within = float((heights <= threshold).double().mean())
        assert within >= percent / 100
        assert within - 1 / len(heights) < percent / 100


@pytest.mark.parametrize("method", ["mse", "percentile"])
def test_a_silent_channel_has_a_threshold_as_the_others(method):
    x = values()
    alone = find(x, x.relu(), 8, False, method, 99.9)
    quiet = torch.stack([-x[:, 0].abs(), torch.zeros(len(x)), x[:, 1].abs() * 1e-9], 1)
    found = find(torch.cat([x, quiet], 1), torch.cat([x, quiet], 1).relu(), 8, False, method, 99.9)
    assert torch.equal(found[:4], alone)
    assert torch.equal(found[4:], alone.median().expand(3))


def test_a_huge_channel_silences_no_other():
    x = values()
    alone = find(x, x.relu(), 8, False, "mse", 99.9)
    more = torch.cat([x, x[:, :1] * 1e6], 1)
    assert torch.equal(find(more, more.relu(), 8, False, "mse", 99.9)[:4], alone)


def test_no_value_above_zero_is_an_error():
    x = -values().abs()
    with pytest.raises(EdgekitError, match="No value is above zero"):
        find(x, x.relu(), 8, False, "mse", 99.9)
    assert bool((find(x, x, 8, True, "mse", 99.9) > 0).all())

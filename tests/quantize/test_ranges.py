"""Range methods, against what they are defined to find."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.find import find, names
from edgekit.quantize.observe import Statistics
from edgekit.quantize.ranges.percentile import Range as Percentile

QMAX = 127


def seen(values, calls=1):
    statistics = Statistics()
    for part in np.array_split(np.asarray(values, np.float32), calls):
        statistics.add(torch.from_numpy(part)[:, None], -1)
    return statistics


@pytest.fixture(scope="module")
def normal():
    return np.random.default_rng(0).standard_normal(100_000)


def error(values, peak, qmax=QMAX):
    scale = peak / qmax
    return np.square(np.clip(np.round(values / scale), -qmax, qmax) * scale - values).mean()


@pytest.mark.parametrize("method", names("ranges"))
def test_a_range_is_positive_and_within_the_largest_magnitude(normal, method):
    for values in (normal, np.abs(normal), normal * 1e-6, np.r_[normal, 1e4], np.eye(1, 50)[0]):
        peak = find("ranges", method).Range().peak(seen(values), QMAX)
        assert 0 < peak <= np.abs(values).max() * (1 + 1e-6)


@pytest.mark.parametrize("method", names("ranges"))
def test_nothing_but_zeros_has_no_range(method):
    assert find("ranges", method).Range().peak(seen(np.zeros(100)), QMAX) == 0


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_one_wild_value_does_not_set_the_range(normal, method):
    wild = np.r_[normal, 1000.0]
    peak = find("ranges", method).Range().peak(seen(wild), QMAX)
    assert peak < 100
    assert find("ranges", "minmax").Range().peak(seen(wild), QMAX) == 1000


@pytest.mark.parametrize("percent", [50, 99, 99.9])
def test_a_percentile_is_numpys(normal, percent):
    found = Percentile(percent).peak(seen(normal), QMAX)
    assert found == pytest.approx(np.percentile(np.abs(normal), percent), abs=8 / 2048 * 2)


def test_mse_is_no_worse_than_any_range_that_it_could_choose(normal):
    values = np.r_[normal, normal[:50] * 10]
    statistics = seen(values)
    for qmax in (7, QMAX):
        best = error(values, find("ranges", "mse").Range().peak(statistics, qmax), qmax)
        others = [error(values, statistics.peak * share, qmax) for share in np.linspace(0.1, 1, 40)]
        assert best <= min(others) * 1.01


def test_entropy_clips_less_where_there_is_more_to_tell_apart(normal):
    heavy = np.random.default_rng(0).standard_t(3, 100_000)
    spans = [
        find("ranges", "entropy").Range().peak(seen(values), QMAX) / np.abs(values).max()
        for values in (normal, heavy)
    ]
    assert spans[1] < spans[0]


def test_a_moving_average_follows_batches():
    values = np.r_[np.ones(50), np.full(50, 3.0)]
    average = find("ranges", "average").Range().peak(seen(values, calls=2), QMAX)
    assert average == pytest.approx(1 + 0.1 * 2)

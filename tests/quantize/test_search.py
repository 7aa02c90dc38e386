"""Search: the order in which modules are taken, and the points that are tried."""

from __future__ import annotations

import itertools

import pytest

from edgekit.quantize.search import Candidate, first_within, front, last_good

CHEAP = Candidate("cheap", damage=0.1, milliseconds=2.0, megabytes=1.0)
DEAR = Candidate("dear", damage=0.4, milliseconds=2.0, megabytes=4.0)
SLOW = Candidate("slow", damage=0.01, milliseconds=-0.5, megabytes=2.0)


def test_modules_are_taken_by_damage_for_time_saved():
    points = front([DEAR, SLOW, CHEAP], milliseconds=10, megabytes=9)
    assert [point.modules for point in points] == [(), ("cheap",), ("cheap", "dear")]
    assert [point.milliseconds for point in points] == [10, 8, 6]
    assert [point.megabytes for point in points] == [9, 8, 4]
    assert points[2].drift == pytest.approx((0.1**2 + 0.4**2) ** 0.5)


def test_for_size_what_is_slow_is_taken_too():
    points = front([DEAR, SLOW, CHEAP], milliseconds=10, megabytes=9, by_size=True)
    assert points[1].modules == ("slow",)
    assert points[-1].milliseconds == pytest.approx(6.5)
    assert points[-1].megabytes == 2


def test_no_point_is_worse_and_slower_than_another():
    points = front([CHEAP, DEAR, SLOW], 10, 9)
    for before, after in itertools.pairwise(points):
        assert after.drift > before.drift
        assert after.milliseconds < before.milliseconds


def test_a_model_that_gains_nothing_has_one_point():
    assert len(front([SLOW], 10, 9)) == 1


@pytest.mark.parametrize("limit", [0, 1, 17, 63, 64])
def test_bisection_finds_the_last_good_point_in_few_trials(limit):
    tried = []

    def good(index):
        tried.append(index)
        return index <= limit

    assert last_good(65, good) == limit
    assert len(tried) <= 8
    assert 0 not in tried
    assert last_good(1, good) == 0


def test_the_most_accurate_point_within_the_targets():
    points = front([CHEAP, DEAR], 10, 9)
    assert first_within(points, 10, None) == 0
    assert first_within(points, 8, None) == 1
    assert first_within(points, 8, 4) == 2
    assert first_within(points, 5, None) is None

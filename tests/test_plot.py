"""Plot: pictures are valid SVG and show what they were given."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from edgekit.plot import MARKED, Bar, Dot, bars, curve, ticks

SVG = "{http://www.w3.org/2000/svg}"


def found(picture, tag):
    return list(ElementTree.fromstring(picture).iter(f"{SVG}{tag}"))


def test_bars_are_as_long_as_their_values():
    picture = bars("a < b", "units", [Bar("one", 2.0, marked=True), Bar("two & three", 1.0)], "odd")
    texts = [text.text for text in found(picture, "text")]
    assert {"a < b", "units", "one", "two & three", "odd", "2", "1"} <= set(texts)
    long, short = (r for r in found(picture, "rect") if r.get("height") == "13.0")
    assert float(long.get("width")) == pytest.approx(2 * float(short.get("width")))
    assert long.get("fill") == MARKED
    assert short.get("fill") != MARKED


def test_no_bars_and_no_lengths():
    assert found(bars("t", "u", []), "svg")
    assert found(bars("t", "u", [Bar("zero", 0.0)]), "svg")


def test_a_curve_goes_down_where_values_fall():
    picture = curve("t", "ms", "drift", [Dot(4, 0), Dot(3, 1, tip="tip"), Dot(2, 5, True, "here")])
    heights = [float(circle.get("cy")) for circle in found(picture, "circle")]
    assert heights == sorted(heights, reverse=True)
    assert {"tip", "here"} <= {title.text for title in found(picture, "title")}


@pytest.mark.parametrize("values", [[0.0], [3.0, 3.0], [0.0, 1e-7], [0.51, 0.62], [-2.0, 900.0]])
def test_ticks_span_the_values(values):
    marks = ticks(values)
    assert marks[0] <= min(values)
    assert marks[-1] >= max(values)
    assert 2 <= len(marks) <= 12

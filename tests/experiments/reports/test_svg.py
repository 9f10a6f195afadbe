"""Charts put numbers where they belong."""

import re
from xml.etree import ElementTree

import pytest

from experiments.reports import axes
from experiments.reports.svg import HEIGHT, WIDTH, Chart, Curve, draw


def chart(points, **settings):
    marks = settings.pop("marks", False)
    curve = Curve("one", points, marks=marks)
    return Chart("x", settings.pop("y_label", "y"), [curve], **settings)


def places(svg):
    """The corners of the only line, in pixels."""
    tree = ElementTree.fromstring(svg)
    (line,) = [x for x in tree.iter("path") if x.get("class") == "line c0"]
    return [tuple(map(float, x.split())) for x in re.split("[ML]", line.get("d")[1:])]


def test_a_line_spans_its_axes_and_a_middle_value_is_in_the_middle():
    low, middle, high = places(draw(chart([(0, 0), (1, 5), (2, 10)], y_range=(0, 10))))
    assert middle[0] == pytest.approx((low[0] + high[0]) / 2, abs=0.1)
    assert middle[1] == pytest.approx((low[1] + high[1]) / 2, abs=0.1)
    assert 0 < low[0] < high[0] < WIDTH and 0 < high[1] < low[1] < HEIGHT


def test_on_a_logarithmic_axis_a_factor_is_a_distance():
    low, middle, high = places(draw(chart([(0, 1), (1, 10), (2, 100)], log=True)))
    assert middle[1] - high[1] == pytest.approx(low[1] - middle[1], abs=0.2)


def test_values_outside_of_a_fixed_axis_stay_inside_of_the_picture():
    (_, y), (_, top) = places(draw(chart([(0, -900), (1, 1)], y_range=(-1, 1))))
    assert 0 < top < y < HEIGHT


def test_what_has_no_place_is_left_out():
    points = [(0, float("nan")), (1, 2.0), (2, float("inf")), (3, 1.0)]
    assert len(places(draw(chart(points)))) == 2
    assert draw(chart([(0, float("nan"))])) == draw(chart([])) == ""
    assert len(places(draw(chart([(0, 0), (1, 1), (2, 99)], log=True)))) == 2


def test_intervals_are_bars_of_marks_and_a_band_of_a_line():
    points = [(0, 1, 0, 2), (1, 3, 2, 4)]
    assert draw(chart(points)).count('class="band c0"') == 1
    marked = draw(chart(points, marks=True))
    assert marked.count('class="bar c0"') == marked.count("<circle") == 2
    assert "one: 3 [2, 4] at 1" in marked


def test_small_numbers_move_their_power_of_ten_into_the_label():
    svg = draw(chart([(0, 1e-5), (1, 3e-5)], y_label="KL (nats)"))
    assert "KL (10⁻⁵ nats)" in svg and ">2<" in svg


def test_labels_are_text():
    svg = draw(chart([(0, 1), (1, 2)], y_label="a < b"))
    assert svg.count("a &lt; b") == 2 and "a < b" not in svg


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (-3, 7, [-2.5, 0, 2.5, 5]), (2, 2, [2])],
)
def test_ticks_are_round(low, high, ticks):
    assert axes.nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (2e-5, "2e-5"), (20_000, "20k"), (1_500_000, "1.5M")],
)
def test_numbers_are_short(value, text):
    assert axes.short(value) == text


def test_a_long_curve_keeps_its_ends_and_its_peak():
    points = [(i, 100.0 if i == 5000 else i % 7) for i in range(10_000)]
    thinned = axes.thinned(points)
    assert len(thinned) < 300 and (5000, 100.0) in thinned
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])
    assert axes.thinned(points[:50]) == points[:50]

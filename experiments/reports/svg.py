"""Draws a chart of curves as SVG, whose colours the page around it decides."""

import html
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from experiments.reports.axes import (
    log_ticks,
    nice_ticks,
    power_of,
    short,
    thinned,
    times_ten,
)

WIDTH, HEIGHT = 370, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 10, 42
# A logarithmic axis whose numbers differ less would have few ticks.
_LEAST_RATIO = 6
# Colours of curves that the page defines, as the classes c0, c1, ...
NUM_COLORS = 8


class Curve(NamedTuple):
    """One curve.

    points: (x, y), or (x, y, low, high) with an interval around y.
    color: index of its colour.
    marks: draw each point with its interval, instead of a line with a band.
    """

    label: str
    points: Sequence[tuple]
    color: int = 0
    marks: bool = False


class Chart(NamedTuple):
    """Curves and their axes.

    y_range: fixed bounds of the vertical axis; None: those of the curves.
    log: logarithmic vertical axis, for values of several sizes; others are left out
        if they are not positive.
    level: a horizontal line and its label; None: no line.
    """

    x_label: str
    y_label: str
    curves: Sequence[Curve]
    y_range: tuple[float, float] | None = None
    log: bool = False
    level: tuple[float, str] | None = None


def draw(chart: Chart) -> str:
    """The chart as an <svg> element; empty if it has no finite point."""
    curves = [
        curve._replace(points=_finite(curve.points, chart.log))
        for curve in chart.curves
    ]
    points = [point for curve in curves for point in curve.points]
    if not points:
        return ""
    ys = [point[1] for point in points]
    if chart.log and max(ys) < _LEAST_RATIO * min(ys):
        return draw(chart._replace(log=False))
    view = _View(chart, points)
    label = html.escape(f"{view.y_label} over {chart.x_label}")
    return "".join(
        (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">',
            *view.axes(),
            *view.level(),
            *(part for curve in curves for part in view.curve(curve)),
            "</svg>",
        )
    )


def _finite(points: Sequence[tuple], log: bool) -> list[tuple]:
    """The points that have a place; ends of an interval that have none are y."""

    def placed(value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not log)

    return [
        (x, y, *(end if placed(end) else y for end in ends))
        for x, y, *ends in points
        if math.isfinite(x) and placed(y)
    ]


class _View:
    """Places numbers on the picture."""

    def __init__(self, chart: Chart, points: Sequence[tuple]) -> None:
        self._chart = chart
        xs = [point[0] for point in points]
        ys = [y for point in points for y in point[1:]]
        if chart.level is not None:
            ys.append(chart.level[0])
        self._x = _widened(min(xs), max(xs), 0.0)
        power = 0 if chart.log or chart.y_range else power_of(ys)
        self._scale = 10.0**power
        self.y_label = chart.y_label
        if power:
            unit = times_ten(power)
            inside = self.y_label.rpartition(" (")
            self.y_label = (
                f"{inside[0]} ({unit} {inside[2]}"
                if inside[0]
                else f"{self.y_label} ({unit})"
            )
        if chart.y_range is not None:
            self._y = chart.y_range
        elif chart.log:
            low, high = _widened(math.log10(min(ys)), math.log10(max(ys)), 0.05)
            self._y = (10**low, 10**high)
        else:
            self._y = _widened(min(ys), max(ys), 0.06)

    def x(self, value: float) -> float:
        """Pixels from the left."""
        low, high = self._x
        share = (value - low) / (high - low)
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        """Pixels from the top; values outside of the axis are put at its end."""
        low, high = self._y
        value = min(max(value, low), high)
        if self._chart.log:
            value, low, high = (math.log10(x) for x in (value, low, high))
        share = (value - low) / (high - low)
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)

    def axes(self) -> Iterator[str]:
        """Grid, numbers and labels."""
        right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
        for tick in log_ticks(*self._y) if self._chart.log else nice_ticks(*self._y):
            y = self.y(tick)
            yield f'<path class="grid" d="M{_LEFT} {y}H{right}"/>'
            text = short(tick / self._scale)
            yield f'<text class="tick" x="{_LEFT - 6}" y="{y + 3.5}">{text}</text>'
        for tick in nice_ticks(*self._x, count=5):
            x = self.x(tick)
            yield f'<path class="grid" d="M{x} {_TOP}V{bottom}"/>'
            yield f'<text class="below" x="{x}" y="{bottom + 15}">{short(tick)}</text>'
        middle = (_LEFT + right) / 2
        x_label, y_label = map(html.escape, (self._chart.x_label, self.y_label))
        yield f'<text class="name" x="{middle}" y="{HEIGHT - 8}">{x_label}</text>'
        yield (
            f'<text class="name" transform="translate(12 {(bottom + _TOP) / 2}) '
            f'rotate(-90)">{y_label}</text>'
        )

    def level(self) -> Iterator[str]:
        """The horizontal line, if any."""
        if self._chart.level is not None:
            value, text = self._chart.level
            y, right = self.y(value), WIDTH - _RIGHT
            yield f'<path class="level" d="M{_LEFT} {y}H{right}"/>'
            yield (
                f'<text class="tick" x="{right - 2}" y="{y - 4}">'
                f"{html.escape(text)}</text>"
            )

    def curve(self, curve: Curve) -> Iterator[str]:
        """A line with its band, or marks with their intervals."""
        name, color = html.escape(curve.label), f"c{curve.color % NUM_COLORS}"
        points = list(curve.points)
        if not curve.marks:
            points = thinned(points)
        with_ends = [point for point in points if len(point) == 4]
        if curve.marks:
            for x, _, low, high in with_ends:
                yield (
                    f'<path class="bar {color}" '
                    f'd="M{self.x(x)} {self.y(low)}V{self.y(high)}"/>'
                )
        elif with_ends:
            places = [(x, high) for x, _, _, high in with_ends]
            places += [(x, low) for x, _, low, _ in reversed(with_ends)]
            yield f'<path class="band {color}" d="{self._path(places)}Z"/>'
        yield f'<path class="line {color}" d="{self._path(points)}">'
        yield f"<title>{name}</title></path>"
        if curve.marks or len(points) == 1:
            for point in points:
                said = f"{name}: {_said(point)}"
                yield (
                    f'<circle class="dot {color}" cx="{self.x(point[0])}" '
                    f'cy="{self.y(point[1])}" r="3"><title>{said}</title></circle>'
                )

    def _path(self, points: Sequence[tuple]) -> str:
        return "M" + "L".join(f"{self.x(p[0])} {self.y(p[1])}" for p in points)


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    """Bounds that differ, with room at both ends."""
    if not high > low:
        room = abs(low) * 0.1 or 0.5
    else:
        room = share * (high - low)
    return low - room, high + room


def _said(point: tuple) -> str:
    x, y, *ends = point
    interval = f" [{ends[0]:.4g}, {ends[1]:.4g}]" if ends else ""
    return f"{y:.4g}{interval} at {short(x)}"

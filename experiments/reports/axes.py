"""Ticks and numbers of the axes of a chart."""

import math
from collections.abc import Iterator, Sequence

# Numbers whose largest is outside of these get a power of ten in the label of the axis.
_PLAIN = (0.01, 1e4)
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers that lie between two bounds."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(x for x in (1, 2, 2.5, 5, 10) if x * power >= 0.999 * rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two positive bounds, with 2 and 5 if there are few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5)):
        ticks = [d * 10.0**e for e in exponents for d in digits]
        ticks = [x for x in ticks if low * 0.999 <= x <= high * 1.001]
        if len(ticks) >= 3:
            break
    return ticks[:: max(len(ticks) // 5, 1)]


def power_of(values: Sequence[float]) -> int:
    """The exponent of ten to take out of the numbers of an axis; 0 for plain ones."""
    largest = max(map(abs, values), default=0.0)
    if not largest or _PLAIN[0] <= largest < _PLAIN[1]:
        return 0
    return math.floor(math.log10(largest))


def times_ten(power: int) -> str:
    """Such as "10⁻⁴"."""
    return "10" + str(power).translate(_SUPERSCRIPTS)


def short(value: float) -> str:
    """A number of at most four digits, such as 0.25, 2e-5, 20k and 1.5M."""
    if 0 < abs(value) < 0.00095:
        digits, _, exponent = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def thinned(points: Sequence[tuple], limit: int = 240) -> list[tuple]:
    """At most about `limit` points of a curve: the lowest and the highest of each part.

    Args:
        points: (x, y, ...), ordered by x.
    """
    if len(points) <= limit:
        return list(points)
    size = -(-len(points) // (limit // 2))

    def kept() -> Iterator[tuple]:
        for begin in range(0, len(points), size):
            part = range(begin, min(begin + size, len(points)))
            ends = {min(part, key=lambda i: points[i][1])}
            ends.add(max(part, key=lambda i: points[i][1]))
            yield from (points[i] for i in sorted(ends))

    return [points[0], *kept(), points[-1]]

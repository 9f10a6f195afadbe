"""Tables of results, in Markdown and as comma-separated values."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without a line break at its end.

    Raises:
        ValueError: a row that has not as many cells as the header.
    """
    lines = [header, ["---"] * len(header), *rows]
    if any(len(line) != len(header) for line in lines):
        raise ValueError(f"every row of a table with {list(header)} needs its cells")
    first, rule, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([first, rule.replace(" ", ""), *rest])


def comma_separated(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The text of a .csv file; floats are written with six digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"{x:.6g}" if isinstance(x, float) else x for x in row])
    return text.getvalue()


def number(value: float, digits: int = 4) -> str:
    """So many significant digits; all of those before the point."""
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def with_interval(value: float, ends: tuple[float, float] | None) -> str:
    """Such as "0.5 [0.4, 0.6]"; the value alone without an interval."""
    return number(value) + (f" [{number(ends[0])}, {number(ends[1])}]" if ends else "")

"""The frame of a page: its style, its sections, tables and charts. Needs no network."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from experiments.reports.svg import NUM_COLORS, Chart, draw

# Okabe and Ito's colours, which colour-blind readers can tell apart; those of the dark
# theme are lighter.
_LIGHT = "#0072b2 #d55e00 #009e73 #cc79a7 #8a6d00 #3a9bd9 #444444 #7b4fb5".split()
_DARK = "#6db8ee #ff9a57 #3fd0a4 #f0a5cf #e6c84f #9ad4ff #c8c8c8 #b99bf0".split()
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --card: #f6f7f9; --ink: #1c2024;
  --soft: #5b6570; --line: #d9dee4; --good: #0a7a4b; --bad: #b3261e; --wait: #8a5a00;
  --warn: #fff4dc; COLORS_LIGHT }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1d2125;
  --ink: #e6e9ec; --soft: #a0a9b2; --line: #353c43; --good: #58d09a; --bad: #ff8a80;
  --wait: #f0c060; --warn: #33290f; COLORS_DARK } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 36px 0 10px; }
h3 { font-size: 15px; margin: 18px 0 6px; color: var(--soft); font-weight: 600; }
p { margin: 6px 0; } p.soft { max-width: 84ch; }
a { color: var(--c0); }
code { font: 13px ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
.wait { color: var(--wait); }
.status { font-weight: 600; }
.cards { display: grid; gap: 12px; margin: 18px 0;
  grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 14px; }
.card b { display: block; font-size: 21px; font-weight: 650; line-height: 1.3; }
.card span { display: block; color: var(--soft); font-size: 13px; }
.notes { background: var(--warn); border-radius: 8px; padding: 10px 16px; }
.notes li { margin: 4px 0; }
.notes ul { padding-left: 18px; margin: 0; }
.charts { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: 10px 10px 4px; }
figcaption { font-size: 13px; padding: 0 4px 4px; }
figcaption b { font-weight: 600; }
.key { white-space: nowrap; margin-right: 12px; color: var(--soft); }
.key i { display: inline-block; width: 14px; height: 4px; border-radius: 2px;
  vertical-align: middle; margin-right: 5px; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; text-anchor: middle; }
svg text.tick { text-anchor: end; } svg text.name { fill: var(--ink); }
svg path { fill: none; } .grid { stroke: var(--line); stroke-width: .7; }
.level { stroke: var(--soft); stroke-dasharray: 4 3; }
.line { stroke-width: 1.8; stroke-linejoin: round; } .bar { stroke-width: 1.6;
  opacity: .55; }
svg .band { opacity: .16; stroke: none; }
table { border-collapse: collapse; font-size: 14px; }
.wide { overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; font-size: 13px; white-space: nowrap; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.parts { display: flex; height: 20px; border-radius: 6px; overflow: hidden;
  margin: 8px 0; max-width: 760px; }
.parts div { min-width: 2px; }
.media { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); }
.media figure.whole { grid-column: 1 / -1; }
img { max-width: 100%; display: block; margin: 0 auto; border-radius: 4px; }
figure.whole img { background: #fff; max-height: 600px; }
details { margin: 14px 0; } summary { cursor: pointer; color: var(--soft); }
@media (max-width: 640px) { .stacked, .stacked tbody, .stacked td { display: block; }
  .stacked tr { display: block; padding: 7px 0; border-bottom: 1px solid var(--line); }
  .stacked tr:has(th), .stacked td:empty { display: none; }
  .stacked td { border: 0; padding: 1px 0; overflow-wrap: anywhere;
    white-space: normal; }
  .stacked [data-name]::before { content: attr(data-name) ": "; color: var(--soft); } }
fieldset.axis { border: 0; padding: 0; margin: 0 0 10px; }
.axis label { margin-right: 14px; cursor: pointer; } .axis { color: var(--soft); }
""".strip()


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page."""

    def colors(values: Sequence[str]) -> str:
        return " ".join(f"--c{i}: {x};" for i, x in enumerate(values))

    style = _STYLE.replace("COLORS_LIGHT", colors(_LIGHT))
    style = style.replace("COLORS_DARK", colors(_DARK))
    for i in range(NUM_COLORS):
        style += (
            f"\n.line.c{i}, .bar.c{i} {{ stroke: var(--c{i}); }} "
            f".dot.c{i}, .band.c{i} {{ fill: var(--c{i}); }} "
            f"i.c{i}, div.c{i} {{ background: var(--c{i}); }}"
        )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}\n</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(filter(None, parts)) + "\n</main>\n</body>\n"
        "</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what is below it; empty if there is nothing."""
    inside = "\n".join(filter(None, parts))
    return f"<h2>{escape(title)}</h2>\n{inside}" if inside else ""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>'


def notes(lines: Sequence[str]) -> str:
    """A list that strikes the eye; empty if there is nothing to say."""
    if not lines:
        return ""
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="notes"><ul>\n{items}\n</ul></div>'


def cards(items: Iterable[tuple[str, str, str]]) -> str:
    """Boxes with a name, a large value, and a line below."""
    boxes = [
        f'<div class="card"><span>{escape(name)}</span><b>{escape(value)}</b>'
        f"<span>{escape(below)}</span></div>"
        for name, value, below in items
    ]
    return f'<div class="cards">\n{"".join(boxes)}\n</div>' if boxes else ""


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    code: int = -1,
    *,
    stacked: bool = False,
) -> str:
    """A table of plain text; empty if it has no rows.

    Args:
        head: names of the columns; empty for none.
        code: index of a column that holds code.
        stacked: on a narrow screen the cells of a row stand below each other.
    """

    def cell(i: int, text: str) -> str:
        inside = escape(text)
        if i == code and text:
            inside = f"<code>{inside}</code>"
        is_number = text[:1].isdigit() or text[:1] == "-"
        named = f' data-name="{escape(head[i])}"' if stacked and head and i else ""
        return f"<td{' class=number' * is_number}{named}>{inside}</td>"

    body = [
        f"<tr>{''.join(cell(i, text) for i, text in enumerate(row))}</tr>"
        for row in rows
    ]
    if not body:
        return ""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "\n".join([f"<tr>{names}</tr>"] * bool(head) + body)
    kind = ' class="stacked"' * stacked
    return f'<div class="wide"><table{kind}>\n{lines}\n</table></div>'


def figure(title: str, charts: Mapping[str, Chart], about: str = "") -> str:
    """One chart, drawn over each axis; empty if it has no points.

    Args:
        charts: key of an axis -> the chart over it.
        about: what the metric means, shown when the mouse points at the title.
    """
    drawn = {key: draw(chart) for key, chart in charts.items()}
    if not any(drawn.values()):
        return ""
    curves = next(iter(charts.values())).curves
    keys = "".join(
        f'<span class="key"><i class="c{curve.color % NUM_COLORS}"></i>'
        f"{escape(curve.label)}</span>"
        for curve in curves
        if curve.label and curve.points
    )
    pictures = "".join(
        f'<div class="over-{key}">{svg or _NOTHING}</div>' for key, svg in drawn.items()
    )
    return (
        f'<figure><figcaption title="{escape(about)}"><b>{escape(title)}</b> '
        f"&nbsp; {keys}</figcaption>{pictures}</figure>"
    )


_NOTHING = '<p class="soft">no row has both</p>'


def charts(figures: Iterable[str]) -> str:
    """Figures side by side; empty if there are none."""
    found = list(filter(None, figures))
    return '<div class="charts">\n' + "\n".join(found) + "\n</div>" if found else ""


def with_axes(names: Mapping[str, str], *parts: str) -> str:
    """Parts with figures, and a choice of the axis that all are drawn over.

    Args:
        names: key of an axis -> its name; the first is chosen at first.
    """
    inside = "\n".join(filter(None, parts))
    if len(names) < 2 or not inside:
        return inside
    first = next(iter(names))
    rules = "".join(
        f".axes:has(#by-{key}:checked) .over-{other} {{ display: none; }}\n"
        for key in names
        for other in names
        if other != key
    )
    choices = "".join(
        f'<label><input type="radio" name="axis" id="by-{key}"'
        f"{' checked' * (key == first)}> {escape(name)}</label>"
        for key, name in names.items()
    )
    return (
        f'<style>\n{rules}</style>\n<div class="axes">\n'
        f'<fieldset class="axis">over {choices}</fieldset>\n{inside}\n</div>'
    )


def parts_of_time(parts: Sequence[tuple[str, float]]) -> str:
    """A bar whose pieces are as long as their shares; empty for no time at all."""
    total = sum(seconds for _, seconds in parts)
    if not total > 0:
        return ""
    pieces = "".join(
        f'<div class="c{i % NUM_COLORS}" style="width:{100 * x / total:.2f}%" '
        f'title="{escape(name)}"></div>'
        for i, (name, x) in enumerate(parts)
    )
    return f'<div class="parts">{pieces}</div>'


def details(summary: str, inside: str) -> str:
    """What is shown on a click; empty if there is nothing."""
    if not inside:
        return ""
    return f"<details><summary>{escape(summary)}</summary>\n{inside}\n</details>"


def picture(path: Path, title: str, *, whole: bool = False) -> str:
    """A PNG or GIF file inside of the page.

    Args:
        whole: as wide as the page.
    """
    kind = path.suffix.lstrip(".").lower()
    data = base64.b64encode(path.read_bytes()).decode()
    name = escape(title)
    return (
        f'<figure class="{"whole" * whole}"><img alt="{name}" loading="lazy" '
        f'src="data:image/{kind};base64,{data}"><figcaption>{name}</figcaption>'
        "</figure>"
    )


def keyed(names: Sequence[tuple[str, str]]) -> str:
    """The colours of the pieces of a bar: their names with a note."""
    return (
        "<p>"
        + "".join(
            f'<span class="key"><i class="c{i % NUM_COLORS}"></i>{escape(name)} '
            f"{escape(note)}</span> "
            for i, (name, note) in enumerate(names)
        )
        + "</p>"
    )

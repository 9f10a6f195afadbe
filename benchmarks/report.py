"""Writes measurements into the documentation, so that no number is typed by hand.

    python -m benchmarks.report [DOCUMENT] [--results FOLDER]

In the document (docs/performance.md) every

    <!-- figures: NAME -->
    <!-- end -->

is filled, between the two lines, with the tables of the newest `NAME-*.json` in the
folder, a line about the machine, and the plot `results/NAME.png` beside the document if
there is one. The `NAME` `gpu` stands for all files of accelerators. If nothing was
measured, the block says so. The old contents of a block are replaced.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import timing

DOCUMENT = timing.RESULTS.parents[1] / "docs" / "performance.md"
GPU = "gpu"
_BLOCK = re.compile(
    r"(<!-- figures: (?P<name>\S+) -->\n)(?P<old>.*?)(<!-- end -->)", re.DOTALL
)
# Columns left out, because they would make a table wider than a page.
HIDDEN = ("fastest", "slowest", "table")


def render(name: str, results: Path) -> str:
    """The contents of the block `name`, as Markdown."""
    files = sorted(results.glob("*.json"))
    contents = [(path.name, json.loads(path.read_text())) for path in files]
    if name == GPU:
        chosen = [x for _, x in contents if x["report"]["platform"] != "cpu"]
        if not chosen:
            return "No figures were measured on a GPU yet.\n"
    else:
        chosen = [
            x
            for file, x in contents
            if x["report"]["platform"] == "cpu" and _called(name, file, x["report"])
        ]
        if not chosen:
            return "Nothing was measured yet.\n"
        chosen = [max(chosen, key=lambda x: x["report"]["date"])]
    chosen.sort(key=lambda x: x["report"]["date"])
    return "\n".join(_section(x) for x in chosen)


def _called(name: str, file: str, report: dict[str, Any]) -> bool:
    """Whether a file belongs to `name`, not to a longer name that begins like it."""
    return file == timing.result_path(name, report).name


def _section(content: dict[str, Any]) -> str:
    lines = [about(content["report"]), ""]
    rows = content["rows"]
    tables = list(dict.fromkeys(row.get("table", "") for row in rows))
    for name in tables:
        if name:
            lines += [f"`{name}`", ""]
        of_table = [row for row in rows if row.get("table", "") == name]
        lines += [markdown_table([row for row in of_table if not _failed(row)])]
        reasons: dict[str, list[str]] = {}
        for row in filter(_failed, of_table):
            reason = row.get("error") or row.get("skipped")
            reasons.setdefault(str(reason), []).append(_what(row))
        lines += [f"- {'; '.join(rows)}: {why}" for why, rows in reasons.items()]
        lines += [""]
    return "\n".join(lines)


def about(report: dict[str, Any]) -> str:
    """One line that says where and when rows were measured."""
    where = f"{report['processor']}, {report['cores']} cores"
    if report["platform"] != "cpu":
        where = f"{report['num_devices']} x {report['device']}"
    versions = report["versions"]
    parts = [
        where,
        f"JAX {versions['jax']}",
        f"MuJoCo {versions['mujoco']}",
        report["date"][:10],
        f"load before it {report['load']}",
    ]
    if "config" in report:
        parts.append(f"`{report['config']}`")
    return f"{'; '.join(parts)}."


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """A table of the columns that are not empty; numbers are aligned right."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [
        name
        for name in names
        if name.split()[-1] not in HIDDEN
        and any(row.get(name) is not None for row in rows)
    ]
    if not names:
        return ""
    bars = ["---" if timing.is_text_column(rows, name) else "---:" for name in names]
    lines = [names, bars]
    lines += [[_cell(name, row.get(name)) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def update(text: str, results: Path, plots: Path) -> str:
    """The document with the contents of all blocks replaced.

    Args:
        results: folder of the JSON files.
        plots: folder of the plots, beside the document.
    """

    def block(match: re.Match[str]) -> str:
        content, name = render(match["name"], results), match["name"]
        if (plots / f"{name}.png").exists():
            content += f"\n![{name}]({plots.name}/{name}.png)\n"
        return match[1] + content + match[4]

    return _BLOCK.sub(block, text)


def _cell(name: str, value: Any) -> str:
    if name in ("share", "utilisation", "ratio") and isinstance(value, float):
        return f"{value:.1%}"
    return timing.format_cell(value).replace("|", "/")


def _failed(row: dict[str, Any]) -> bool:
    return bool(row.get("error") or row.get("skipped"))


def _what(row: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value}"
        for name, value in row.items()
        if name not in ("table", "error", "skipped") and value is not None
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrite the document."""
    parser = argparse.ArgumentParser("benchmarks.report")
    parser.add_argument("document", nargs="?", type=Path, default=DOCUMENT)
    parser.add_argument("--results", type=Path, default=timing.RESULTS)
    options = parser.parse_args(arguments)
    text = options.document.read_text()
    plots = options.document.parent / "results"
    options.document.write_text(update(text, options.results, plots))
    print(f"wrote {options.document}")


if __name__ == "__main__":
    main()

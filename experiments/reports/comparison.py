"""A page that compares groups of runs, such as seeds of several settings."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dppo_jax.training.metric_names import EVALUATION, about
from experiments import directories
from experiments.curves import AXES, ON_PAGES, curve
from experiments.reports import html, run
from experiments.reports.run import Facts
from experiments.reports.svg import Chart, Curve

Groups = Mapping[str, Sequence[str]]

# Settings that only some algorithms and networks have; their names say enough.
_OWN = ("algorithm.", "model.network.", "critic.")
# Settings that only name a run or its sources.
_NO_SETTINGS = ("name", "run_dir", "policy", "data", "seed", "origin.", "stage")


def make(groups: Groups, metrics: Sequence[str]) -> str:
    """The page.

    Args:
        groups: label -> run directories.
        metrics: columns of `metrics.csv` that all have.

    Raises:
        SettingsError: a directory holds no run.
    """
    facts = {label: [run.read(x) for x in dirs] for label, dirs in groups.items()}
    title = f"{', '.join(groups)}"
    axes = _axes(facts)
    figures = (_figure(facts, name, axes) for name in metrics)
    return html.page(
        f"Comparison: {title}",
        (
            "<h1>Comparison of runs</h1>",
            html.paragraph(title),
            html.notes(
                [p for each in facts.values() for one in each for p in one.problems]
            ),
            html.section("Scores", _scores(facts, metrics)),
            html.section(
                "Curves",
                html.with_axes(axes, html.charts(figures)),
                html.paragraph(
                    "Lines are means over the runs of a group, bands their range.",
                    "soft",
                ),
            ),
            html.section("Settings that differ between the groups", _settings(facts)),
            html.section("Runs", _runs(facts)),
        ),
    )


def _axes(facts: Mapping[str, Sequence[Facts]]) -> dict[str, str]:
    logged = [
        {name for row in one.rows for name in row} for x in facts.values() for one in x
    ]
    return {key: AXES[key] for key in ON_PAGES if all(key in found for found in logged)}


def _figure(
    facts: Mapping[str, Sequence[Facts]], name: str, axes: Mapping[str, str]
) -> str:
    metric = about(name)
    factor = 100 if metric.unit == "%" else 1
    mode = ", evaluation" if name.startswith(EVALUATION) else ""
    title = metric.label[:1].upper() + metric.label[1:] + mode
    charts = {
        key: Chart(
            x_label=x_label,
            y_label=metric.label + (metric.unit and f" ({metric.unit})"),
            curves=[
                Curve(label, _points(group, name, key, factor), color=i)
                for i, (label, group) in enumerate(facts.items())
            ],
            y_range=(0.0, 100.0) if name.endswith(("success", "solved")) else None,
        )
        for key, x_label in axes.items()
    }
    return html.figure(title, charts, metric.meaning)


def _points(
    group: Sequence[Facts], name: str, over: str, factor: float
) -> list[tuple[float, float, float, float]]:
    """The mean over the runs of a group, and their lowest and highest value."""
    curves = [curve(one.rows, name, over) for one in group]
    shared = sorted(set.intersection(*(set(points) for points in curves)))
    found = []
    for iteration in shared:
        xs, ys = np.array([points[iteration] for points in curves]).T
        ys = factor * ys
        found.append((xs.mean(), ys.mean(), ys.min(), ys.max()))
    return [tuple(map(float, point)) for point in found]  # type: ignore[misc]


def _scores(facts: Mapping[str, Sequence[Facts]], metrics: Sequence[str]) -> str:
    rows = []
    for label, group in facts.items():
        for name in metrics:
            curves = [[row[name] for row in x.rows if name in row] for x in group]
            ends = [(curve[0], curve[-1]) for curve in curves if curve]
            if not ends:
                continue
            first, last = np.array(ends).T
            mode = "evaluation" if name.startswith(EVALUATION) else "exploring"
            rows.append(
                (
                    label,
                    f"{about(name).label}, {mode}",
                    str(len(ends)),
                    _number(name, first.mean()),
                    _number(name, last.mean()),
                    ", ".join(_number(name, x) for x in last),
                )
            )
    return html.table(("group", "metric", "runs", "first", "last", "each run"), rows)


def _number(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if about(name).unit == "%" else f"{value:.4g}"


def _settings(facts: Mapping[str, Sequence[Facts]]) -> str:
    """One row for each setting in which the first runs of two groups differ."""
    first = {label: _flat(group[0]) for label, group in facts.items()}
    names = set().union(*first.values())
    shared = set.intersection(*map(set, first.values()))
    rows = []
    for name in sorted(names):
        if name not in shared and name.startswith(_OWN):
            continue
        values = [own.get(name, "—") for own in first.values()]
        if len(set(values)) > 1:
            rows.append((name, *values))
    return html.table(("setting", *facts), rows, code=0)


def _flat(facts: Facts) -> dict[str, str]:
    if facts.config is None:
        return {}
    return {
        name: str(value)
        for name, value in directories.settings_read(facts.config, facts.stage).items()
        if not name.startswith(_NO_SETTINGS)
    }


def _runs(facts: Mapping[str, Sequence[Facts]]) -> str:
    def rows() -> Iterator[tuple[str, str, str]]:
        for label, group in facts.items():
            for one in group:
                yield label, str(one.run_dir), run.status(one).text

    return html.table(("group", "directory", "status"), rows(), code=1)


def write(path: Path, groups: Groups, metrics: Sequence[str]) -> None:
    """Write the page, and print its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(make(groups, metrics))
    print(f"wrote {path}")

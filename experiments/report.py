"""Show runs: python -m experiments.report RUN [RUN ...]

Writes RUN/report.html, a page with the scores before and after, curves, times, changed
settings, episodes and warnings. It works for runs of all stages, also for those that
are still running or were interrupted. In a folder of several seeds it writes the report
of each, and a page that shows them together.

Compare runs: python -m experiments.report --output=FILE LABEL=DIR,DIR ...

Draws one curve per group of run directories (seeds): the mean, with the range as a
band, in one panel per metric. FILE.html is a page like that of a run; FILE.png is a
picture, with one row of panels per axis of --over. Both print a table of the first and
the last values. A RUN without a label is a group of its own. --metrics=NAME,NAME
chooses columns of metrics.csv, --over=iteration,env_steps,seconds the axes of a
picture.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from matplotlib import pyplot as plt

from dppo_jax.errors import SettingsError
from dppo_jax.training.config_file import runs_inside
from dppo_jax.training.metric_names import EVALUATION, SCORES
from dppo_jax.training.metrics import read_metrics
from experiments import command_line, plots, processes, tables
from experiments.directories import read_groups
from experiments.reports import comparison, run_page

_OUTPUT = flags.DEFINE_string(
    "output", "", "page or picture of a comparison to write; default: report.png"
)
_METRICS = flags.DEFINE_list(
    "metrics",
    None,
    "columns of metrics.csv to plot. Default: those of success and eval/success that "
    "all runs have, or else of episode_return and eval/episode_return, or of loss.",
)
_OVER = flags.DEFINE_list(
    "over",
    None,
    f"what to draw the metrics over, one or more of {', '.join(plots.AXES)} (default: "
    "iteration).",
)
_PAGES = (".html", ".htm")
_DEFAULTS = (*((x, EVALUATION + x) for x in SCORES), ("loss", "average_loss"))


def main(
    words: Sequence[str],
    output: str = "",
    metrics: Sequence[str] | None = None,
    over: Sequence[str] | None = None,
) -> None:
    """Write the report of each run, or compare groups of runs.

    Args:
        words: RUN, or LABEL=DIR,DIR.
        output: page or picture of a comparison; empty: report.png.
        metrics: columns to compare; None: those of the scores.
        over: axes of a picture; None: iterations.

    Raises:
        SettingsError: a wrong argument, a directory without a run, or one that lacks a
            metric.
    """
    groups = parse(words, output, over, metrics)
    if not groups:
        for folder in words:
            _write(folder)
        return
    path = Path(output or "report.png")
    is_page = path.suffix in _PAGES
    if not is_page and not plots.can_write(path):
        raise SettingsError(
            f"--output={output} is no page or picture; use .html or .png."
        )
    metrics = metrics or _default_metrics(groups)
    _print_table(groups, metrics)
    if is_page:
        comparison.write(path, groups, metrics)
    else:
        _save_picture(path, groups, metrics, over or ("iteration",))


def _write(folder: str) -> None:
    """The report of a run, or of the seeds in a folder, which are compared too."""
    seeds = [x for x in runs_inside(folder) if Path(x).name.startswith("seed_")]
    for run_dir in seeds or [folder]:
        print(f"wrote {run_page.write(run_dir)}")
    if seeds:
        groups = {f"{len(seeds)} seeds of {folder}": seeds}
        path = Path(folder) / run_page.FILE
        comparison.write(path, groups, _default_metrics(groups))


def parse(
    words: Sequence[str],
    output: str = "",
    over: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
) -> dict[str, list[str]]:
    """Label -> run directories of a comparison; empty for reports of single runs.

    Raises:
        SettingsError: no runs, a label without runs or one that is given twice, an
            axis that is not known, or a choice that would do nothing.
    """
    for axis in over or ():
        if axis not in plots.AXES:
            raise SettingsError(
                f"--over={axis} is unknown; use one of {', '.join(plots.AXES)}."
            )
    if words and not output and not any("=" in word for word in words):
        for name, value in (("metrics", metrics), ("over", over)):
            if value is not None:
                raise SettingsError(
                    f"--{name}={','.join(value)} chooses what a comparison shows, and "
                    "the report of a run shows everything; leave it out, or pass "
                    "--output=FILE.png."
                )
        return {}
    if over is not None and Path(output).suffix in _PAGES:
        raise SettingsError(
            f"--over={','.join(over)}: a page has all axes to choose from; leave it "
            "out, or pass --output=FILE.png."
        )
    return read_groups(words)


def _print_table(groups: dict[str, list[str]], metrics: Sequence[str]) -> None:
    curves = {
        (label, metric): [_curve(run_dir, metric) for run_dir in dirs]
        for label, dirs in groups.items()
        for metric in metrics
    }
    rows = []
    for (label, metric), seeds in curves.items():
        first, last = (np.array([curve[i] for curve in seeds]) for i in (0, -1))
        means = [f"{x.mean():.3f}" for x in (first, last)]
        each = ", ".join(f"{x:.3f}" for x in last)
        rows.append([label, str(len(seeds)), metric, *means, each])
    header = ("group", "seeds", "metric", "first", "last", "each seed")
    print(tables.markdown(header, rows))


def _save_picture(
    path: Path,
    groups: dict[str, list[str]],
    metrics: Sequence[str],
    over: Sequence[str],
) -> None:
    shape = (len(over), len(metrics))
    figure, axes = plt.subplots(
        *shape, figsize=(5 * shape[1], 3.6 * shape[0]), squeeze=False
    )
    for row, axis in zip(axes, over):
        for ax, metric in zip(row, metrics):
            plots.plot_curves(ax, groups, metric, axis)
    plots.save_figure(figure, path)


def _default_metrics(groups: dict[str, list[str]]) -> list[str]:
    runs = [run_dir for dirs in groups.values() for run_dir in dirs]
    logged = set.intersection(*(_logged(run_dir) for run_dir in runs))
    shown = [[name for name in names if name in logged] for names in _DEFAULTS]
    return next(filter(None, shown), list(_DEFAULTS[0]))


def _logged(run_dir: str) -> set[str]:
    """The columns of a run that hold numbers."""
    names = {name for row in read_metrics(run_dir) for name in row}
    if not names:
        raise SettingsError(
            f"{run_dir} holds no rows in metrics.csv; name the directory of a run."
        )
    return names


def _curve(run_dir: str, metric: str) -> list[float]:
    logged = _logged(run_dir)
    if metric not in logged:
        raise SettingsError(
            f"{run_dir}: metrics.csv has no {metric!r}; pass --metrics=NAME,... of "
            f"{', '.join(sorted(logged))}."
        )
    return [row[metric] for row in read_metrics(run_dir) if metric in row]


if __name__ == "__main__":
    with processes.errors_in_one_line():
        main(
            command_line.parse_flags(sys.argv),
            output=_OUTPUT.value,
            metrics=_METRICS.value,
            over=_OVER.value,
        )

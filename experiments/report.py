"""Compare runs: python -m experiments.report --output=FILE.png LABEL=DIR,DIR ...

Draws one curve per group of run directories (seeds): the mean, with the range as a
band, in one panel per metric, and one row of panels per axis of --over. Prints a table
of the first and the last values.
"""

from pathlib import Path

import numpy as np
from absl import app, flags
from matplotlib import pyplot as plt

from dppo_jax.errors import SettingsError
from dppo_jax.training.metrics import read_metrics
from experiments import plots, processes
from experiments.directories import read_groups

_OUTPUT = flags.DEFINE_string("output", "report.png", "picture to write")
_METRICS = flags.DEFINE_list(
    "metrics",
    None,
    "columns of metrics.csv to plot. Default: those of success and eval/success that "
    "all runs have, or else of episode_return and eval/episode_return.",
)
_OVER = flags.DEFINE_list(
    "over",
    ["iteration"],
    f"what to draw the metrics over, one or more of {', '.join(plots.AXES)}.",
)
_DEFAULTS = (("success", "eval/success"), ("episode_return", "eval/episode_return"))


def main(argv: list[str]) -> None:
    """Plot and tabulate the groups named on the command line."""
    with processes.errors_in_one_line():
        groups = read_groups(argv[1:])
        for over in _OVER.value:
            if over not in plots.AXES:
                raise SettingsError(
                    f"--over={over} is unknown; use one of {', '.join(plots.AXES)}."
                )
        metrics = _METRICS.value or _default_metrics(groups)
        curves = {
            (label, metric): [_curve(run_dir, metric) for run_dir in dirs]
            for label, dirs in groups.items()
            for metric in metrics
        }
        if not plots.can_write(Path(_OUTPUT.value)):
            raise SettingsError(
                f"--output={_OUTPUT.value} is not a picture format; use .png."
            )
        print("| group | seeds | metric | first | last | each seed |")
        print("|---|---|---|---|---|---|")
        for (label, metric), seeds in curves.items():
            first, last = (np.array([curve[i] for curve in seeds]) for i in (0, -1))
            each = ", ".join(f"{x:.3f}" for x in last)
            print(
                f"| {label} | {len(seeds)} | {metric} | {first.mean():.3f} | "
                f"{last.mean():.3f} | {each} |"
            )
        shape = (len(_OVER.value), len(metrics))
        figure, axes = plt.subplots(
            *shape, figsize=(5 * shape[1], 3.6 * shape[0]), squeeze=False
        )
        for row, over in zip(axes, _OVER.value):
            for ax, metric in zip(row, metrics):
                plots.plot_curves(ax, groups, metric, over)
        plots.save_figure(figure, Path(_OUTPUT.value))


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
    app.run(main)

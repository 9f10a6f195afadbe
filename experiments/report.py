"""Compare runs: python -m experiments.report --output=FILE.png LABEL=DIR,DIR ...

Draws one curve per group of run directories (seeds): the mean, with the range as a
band, in one panel per metric. Prints a table of the first and the last values.
"""

from pathlib import Path

import numpy as np
from absl import app, flags
from matplotlib import pyplot as plt

from dppo_jax.errors import SettingsError
from dppo_jax.training.metrics import read_metrics
from experiments import plots, processes

_OUTPUT = flags.DEFINE_string("output", "report.png", "picture to write")
_METRICS = flags.DEFINE_list(
    "metrics", ["success", "eval/success"], "columns of metrics.csv to plot"
)


def main(argv: list[str]) -> None:
    """Plot and tabulate the groups named on the command line."""
    with processes.errors_in_one_line():
        groups = _groups(argv[1:])
        curves = {
            (label, metric): [_curve(run_dir, metric) for run_dir in dirs]
            for label, dirs in groups.items()
            for metric in _METRICS.value
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
        metrics = _METRICS.value
        figure, axes = plt.subplots(
            1, len(metrics), figsize=(5 * len(metrics), 3.6), squeeze=False
        )
        for ax, metric in zip(axes[0], metrics):
            plots.plot_curves(ax, groups, metric)
        plots.save_figure(figure, Path(_OUTPUT.value))


def _groups(words: list[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for word in words:
        label, equals, dirs = word.partition("=")
        if not equals or not dirs:
            raise SettingsError(f"{word!r} names no runs; write LABEL=DIR,DIR ...")
        if label in groups:
            raise SettingsError(f"the label {label!r} is given twice; join its runs.")
        groups[label] = dirs.split(",")
    if not groups:
        raise SettingsError("no runs given; write LABEL=DIR,DIR ...")
    return groups


def _curve(run_dir: str, metric: str) -> list[float]:
    rows = read_metrics(run_dir)
    curve = [row[metric] for row in rows if metric in row]
    if not curve:
        known = sorted({name for row in rows for name in row})
        raise SettingsError(f"{run_dir}: metrics.csv has no {metric!r}, only {known}.")
    return curve


if __name__ == "__main__":
    app.run(main)

"""Compare runs: python -m experiments.report --output=FILE.png LABEL=DIR,DIR ...

Every group of run directories (seeds) becomes one curve, its mean with the range as
a band, in one panel per metric; a table of the last evaluation goes to the screen.
"""

import sys
from pathlib import Path

import numpy as np
from absl import app, flags
from matplotlib import pyplot as plt

from dppo_jax.metrics import read_metrics
from experiments import plots

_OUTPUT = flags.DEFINE_string("output", "report.png", "picture to write")
_METRICS = flags.DEFINE_list(
    "metrics", ["success", "eval/success"], "columns of metrics.csv to plot"
)


def main(argv: list[str]) -> None:
    """Plot and tabulate the groups named on the command line."""
    try:
        groups = {
            label: dirs.split(",")
            for label, dirs in (arg.split("=") for arg in argv[1:])
        }
        _check(groups)
    except ValueError as error:
        print(f"error: {error}; usage: LABEL=DIR,DIR ...", file=sys.stderr)
        sys.exit(2)
    metrics = _METRICS.value
    figure, axes = plt.subplots(
        1, len(metrics), figsize=(5 * len(metrics), 3.6), squeeze=False
    )
    for ax, metric in zip(axes[0], metrics):
        plots.plot_curves(ax, groups, metric)
    plots.save_figure(figure, Path(_OUTPUT.value))
    print("| group | seeds | metric | first | last | each seed |")
    print("|---|---|---|---|---|---|")
    for label, dirs in groups.items():
        for metric in metrics:
            curves = [[r[metric] for r in read_metrics(d) if metric in r] for d in dirs]
            first, last = (np.array([c[i] for c in curves if c]) for i in (0, -1))
            each = ", ".join(f"{x:.3f}" for x in last)
            print(
                f"| {label} | {len(dirs)} | {metric} | {first.mean():.3f} | "
                f"{last.mean():.3f} | {each} |"
            )


def _check(groups: dict[str, list[str]]) -> None:
    if not groups:
        raise ValueError("no runs given")
    for run_dir in (d for dirs in groups.values() for d in dirs):
        if not read_metrics(run_dir):
            raise ValueError(f"{run_dir} holds no metrics.csv with rows")


if __name__ == "__main__":
    app.run(main)

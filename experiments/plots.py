"""Plots of a run: trajectories before and after fine-tuning, and learning curves."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from dppo_jax.envs.tasks import avoid
from dppo_jax.evaluate import Evaluation
from dppo_jax.training.metrics import read_metrics

# Runs must not need a display; notebooks have one of their own.
if "inline" not in str(matplotlib.get_backend(auto_select=False)):
    matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

_SUCCESS, _FAILURE = "#1f77b4", "#d62728"
_EPISODES_SHOWN = 50
# A legend of more curves would hide some of them.
_LEGEND_INSIDE = 6


def draw_avoid(ax: Axes, evaluation: Evaluation) -> None:
    """Trajectories among the cylinders, seen from above (the paper's figure)."""
    for x, y, radius in avoid.CYLINDERS:
        ax.add_patch(plt.Circle((x, y), radius, color="0.35", zorder=3))
    ax.axhline(avoid.FINISH_Y, color="0.5", linestyle="--", linewidth=1)
    ax.axhline(avoid.REWARD_Y, color="tab:green", linewidth=1)
    for height, text in ((avoid.FINISH_Y, "finish"), (avoid.REWARD_Y, "reward")):
        ax.text(0.84, height + 0.005, text, ha="right", fontsize=8, color="0.4")
    paths = np.asarray(evaluation.traces["position"])[:_EPISODES_SHOWN]
    success = np.asarray(evaluation.metrics["success"])
    start = np.broadcast_to(avoid.START, (len(paths), 1, 2))
    for path, good in zip(np.concatenate([start, paths], axis=1), success):
        color = _SUCCESS if good else _FAILURE
        ax.plot(path[:, 0], path[:, 1], color=color, linewidth=0.8, alpha=0.6)
    ax.set(xlim=(0.15, 0.85), ylim=(-0.32, 0.6), xlabel="x (m)", ylabel="y (m)")
    ax.set_aspect("equal")
    ax.set_title(f"success {100 * success.mean():.1f} % of {success.size}")


# Per task: the metrics that its plot needs at every control step; the plot function.
_DRAWINGS: dict[str, tuple[tuple[str, ...], Callable[[Axes, Evaluation], None]]] = {
    "avoid": (("position",), draw_avoid)
}


def traced_metrics(task: str) -> tuple[str, ...]:
    """Metrics that the plot of a task needs at every control step."""
    return _DRAWINGS[task][0] if task in _DRAWINGS else ()


def save_trajectories(
    run_dir: str, task: str, before: Evaluation, after: Evaluation
) -> None:
    """Write `plots/trajectories.png` for a task in `_DRAWINGS`; print the path."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 5.5), sharey=True)
    for ax, name, evaluation in zip(axes, ("before", "after"), (before, after)):
        _DRAWINGS[task][1](ax, evaluation)
        ax.set_title(f"{name}: {ax.get_title()}")
    save_figure(figure, Path(run_dir) / "plots" / "trajectories.png")


def save_curve(run_dir: str) -> None:
    """Write `plots/curve.png` with metrics that the run logged; print the path."""
    logged = {name for row in read_metrics(run_dir) for name in row}
    names = (
        *("episode_return", "success", "solved"),
        *("eval/episode_return", "eval/success"),
    )
    shown = [name for name in names if name in logged]
    if not shown:
        return  # No episode has ended yet.
    figure, axes = plt.subplots(
        1, len(shown), figsize=(4 * len(shown), 3.5), squeeze=False
    )
    for ax, name in zip(axes[0], shown):
        mode = "evaluation" if name.startswith("eval/") else "exploring"
        plot_curves(ax, {mode: [run_dir]}, name)
    save_figure(figure, Path(run_dir) / "plots" / "curve.png")


# What a curve can be drawn over: the label of the axis.
AXES = {
    "iteration": "iteration",
    "env_steps": "control steps",
    "seconds": "training time without evaluations (s)",
}


def plot_curves(
    ax: Axes,
    groups: Mapping[str, Sequence[str]],
    metric: str,
    over: str = "iteration",
) -> None:
    """One curve per group of runs (seeds): their mean, and their range as a band.

    Args:
        over: one of `AXES`. Runs of a group are averaged iteration by iteration, and so
            are their places on the axis.
    """
    # The colours begin again after ten curves.
    styles = itertools.cycle(itertools.chain(*(10 * [x] for x in ("-", "--", ":"))))
    for (label, run_dirs), style in zip(groups.items(), styles):
        curves = [curve(read_metrics(run), metric, over) for run in run_dirs]
        shared = sorted(set.intersection(*(set(points) for points in curves)))
        points = np.array([[each[i] for i in shared] for each in curves])
        if not shared:
            continue
        places, values = points[..., 0].mean(0), points[..., 1]
        (line,) = ax.plot(places, values.mean(axis=0), style, label=label)
        ax.fill_between(
            places, values.min(0), values.max(0), color=line.get_color(), alpha=0.2
        )
    ax.set(xlabel=AXES[over], ylabel=metric.replace("_", " "))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k, not 20000
    if metric.endswith(("success", "solved", "collision", "outside")):
        ax.set_ylim(-0.03, 1.03)  # Rates need the same axis in all plots.
    ax.grid(alpha=0.3)
    if len(groups) <= _LEGEND_INSIDE:
        ax.legend()
    else:
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")


def curve(
    rows: Sequence[Mapping[str, float]], metric: str, over: str
) -> dict[float, tuple[float, float]]:
    """Iteration -> place on the axis and value, for the rows that have both.

    The row of iteration 0, an evaluation before training, has neither steps nor a time.
    """
    points, seconds, last = {}, 0.0, 0.0
    for row in rows:
        iteration = row["iteration"]
        seconds += row.get("seconds", 0.0) * (iteration - last)
        last = iteration
        start = {} if iteration else {"env_steps": 0.0}
        place = {**start, **row, "seconds": seconds}.get(over)
        if metric in row and place is not None:
            points[iteration] = (place, row[metric])
    return points


def can_write(path: Path) -> bool:
    """Whether the suffix of `path` names a picture format."""
    return path.suffix.lstrip(".") in FigureCanvasBase.get_supported_filetypes()


def save_figure(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"wrote {path}")

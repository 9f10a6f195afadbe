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
from dppo_jax.training.metric_names import EVALUATION, about
from dppo_jax.training.metrics import read_metrics
from experiments.curves import AXES, curve
from experiments.reports import panels, run

# Runs must not need a display; notebooks have one of their own.
if "inline" not in str(matplotlib.get_backend(auto_select=False)):
    matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

_SUCCESS, _FAILURE = "#1f77b4", "#d62728"
_EPISODES_SHOWN = 50
# A legend of more curves would hide some of them.
_LEGEND_INSIDE = 6


def draw_avoid_scene(ax: Axes, options: Mapping[str, object]) -> None:
    """The cylinders, the lines and the start, seen from above.

    Args:
        options: of the task, of which `rewarded_gap` is marked.
    """
    gap = options.get("rewarded_gap", avoid.ROW_CODES[2][0])
    ends = [avoid.X_RANGE[0], *avoid.CYLINDERS[3:, 0], avoid.X_RANGE[1]]
    place = avoid.ROW_CODES[2].index(int(str(gap)))
    ax.plot(
        ends[place : place + 2],
        2 * [avoid.ROW_Y[2]],
        color="tab:green",
        linewidth=7,
        alpha=0.3,
        solid_capstyle="butt",
        label="rewarded gap",
    )
    for x, y, radius in avoid.CYLINDERS:
        ax.add_patch(plt.Circle((x, y), radius, color="0.35", zorder=3))
    ax.axhline(avoid.FINISH_Y, color="0.5", linestyle="--", linewidth=1)
    ax.axhline(avoid.REWARD_Y, color="tab:green", linewidth=1)
    for height, text in ((avoid.FINISH_Y, "finish"), (avoid.REWARD_Y, "reward")):
        # Paths may cross the words.
        ground = dict(facecolor="white", alpha=0.8, linewidth=0, pad=0.5)
        where = (0.84, height + 0.012)
        ax.text(*where, text, ha="right", fontsize=8, color="0.4", bbox=ground)
    ax.plot(*avoid.START, "o", color="black", markersize=5, label="start")
    ax.set(xlim=(0.15, 0.85), ylim=(-0.32, 0.6), xlabel="x (m)", ylabel="y (m)")
    ax.set_aspect("equal")


def draw_avoid(
    ax: Axes, evaluation: Evaluation, options: Mapping[str, object] | None = None
) -> None:
    """Trajectories among the cylinders, seen from above (the paper's figure).

    Args:
        options: as of `draw_avoid_scene`; None: the defaults of the task.
    """
    draw_avoid_scene(ax, options or {})
    paths = np.asarray(evaluation.traces["position"])[:_EPISODES_SHOWN]
    success = np.asarray(evaluation.metrics["success"])
    start = np.broadcast_to(avoid.START, (len(paths), 1, 2))
    for path, good in zip(np.concatenate([start, paths], axis=1), success):
        color = _SUCCESS if good else _FAILURE
        ax.plot(path[:, 0], path[:, 1], color=color, linewidth=0.8, alpha=0.6)
    for color, label in ((_SUCCESS, "success"), (_FAILURE, "failure")):
        ax.plot([], [], color=color, label=label)
    ax.legend(loc="lower left", fontsize="small")
    ax.set_title(f"success {100 * success.mean():.1f} % of {success.size}")


# Per task: the metrics that its plot needs at every control step; the plot function.
_Draws = Callable[[Axes, Evaluation, Mapping[str, object]], None]
_DRAWINGS: dict[str, tuple[tuple[str, ...], _Draws]] = {
    "avoid": (("position",), draw_avoid)
}
_SCENES = {"avoid": draw_avoid_scene}


def draw_scene(ax: Axes, task: str, options: Mapping[str, object]) -> None:
    """What stands still in a task, if that can be drawn.

    Args:
        options: those of the task, `config.env.options`.
    """
    if task in _SCENES:
        _SCENES[task](ax, options)


def traced_metrics(task: str) -> tuple[str, ...]:
    """Metrics that the plot of a task needs at every control step."""
    return _DRAWINGS[task][0] if task in _DRAWINGS else ()


def save_trajectories(
    run_dir: str,
    task: str,
    before: Evaluation,
    after: Evaluation,
    options: Mapping[str, object],
) -> None:
    """Write `plots/trajectories.png` for a task in `_DRAWINGS`; print the path.

    Args:
        options: those of the task, `config.env.options`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 5.5), sharey=True)
    for ax, name, evaluation in zip(axes, ("before", "after"), (before, after)):
        _DRAWINGS[task][1](ax, evaluation, options)
        ax.set_title(f"{name}: {ax.get_title()}")
    save_figure(figure, Path(run_dir) / "plots" / "trajectories.png")


# One panel of the picture of a run each; the first metrics of a panel name its axis.
_PANELS = (
    ("success", "eval/success"),
    ("episode_return", "eval/episode_return"),
    ("loss", "average_loss"),
    ("approx_kl", "approx_kl_last"),
    ("clip_fraction",),
    ("explained_variance",),
    ("critic_loss",),
)


def save_curve(run_dir: str) -> None:
    """Write `plots/curve.png` with metrics that the run logged; print the path."""
    facts = run.read(run_dir)
    logged = {name for row in facts.rows for name in row}
    shown = [[name for name in names if name in logged] for names in _PANELS]
    shown = [names for names in shown if names]
    if not shown:
        return  # No episode has ended yet.
    over = "env_steps" if "env_steps" in logged else "iteration"
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 3.2 * rows), squeeze=False
    )
    for ax, names in itertools.zip_longest(axes.flat, shown):
        if names:
            draw_panel(ax, facts, names, over)
        else:
            ax.set_axis_off()
    save_figure(figure, Path(run_dir) / "plots" / "curve.png")


def draw_panel(ax: Axes, facts: run.Facts, names: Sequence[str], over: str) -> None:
    """Metrics of one run with their 95 % intervals.

    Args:
        names: of the metrics; evaluations are drawn as points.
        over: a key of `panels.axes`.
    """
    metric = about(names[0])
    factor = 100 if metric.unit == "%" else 1
    for name, color in zip(names, ("tab:blue", "tab:orange")):
        found = panels.points(facts.rows, name, over, facts.evaluation)
        if not found:
            continue
        label = panels.curve_label(name, names) or None
        style = "o-" if name.startswith(EVALUATION) else "-"
        x, y = np.array([point[:2] for point in found]).T
        if panels.is_logarithmic(name, list(y)):
            ax.set_yscale("log", nonpositive="mask")
        ax.plot(x, factor * y, style, color=color, markersize=3, label=label)
        ends = np.array([point for point in found if len(point) == 4])
        if len(ends):
            low, high = factor * ends[:, 2:].T
            ax.fill_between(ends[:, 0], low, high, color=color, alpha=0.15)
    unit = metric.unit and f" ({metric.unit})"
    label = metric.label + unit
    ax.set(xlabel=panels.axes(facts).get(over, over), ylabel=label)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k, not 20000
    if metric.label in ("success", "solved"):
        ax.set_ylim(-3, 103)
    if metric.label == "explained variance":
        ax.set_ylim(max(ax.get_ylim()[0], -1.05), 1.05)
    ax.grid(alpha=0.3)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize="small")


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
    name = about(metric).label
    evaluated = ", evaluation" if metric.startswith(EVALUATION) else ""
    ax.set(xlabel=AXES[over], ylabel=name + evaluated)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k, not 20000
    if metric.endswith(("success", "solved", "collision", "outside")):
        ax.set_ylim(-0.03, 1.03)  # Rates need the same axis in all plots.
    ax.grid(alpha=0.3)
    if len(groups) <= _LEGEND_INSIDE:
        ax.legend()
    else:
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")


def can_write(path: Path) -> bool:
    """Whether the suffix of `path` names a picture format."""
    return path.suffix.lstrip(".") in FigureCanvasBase.get_supported_filetypes()


def save_figure(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"wrote {path}")

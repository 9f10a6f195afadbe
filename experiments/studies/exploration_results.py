"""What a study of exploration found: its tables, its file and its picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from ml_collections import ConfigDict

from experiments import intervals, plots, tables
from experiments.studies.exploration import NO_MODE, Exploration, entropy, shares
from experiments.studies.planes import Plane, Routes

DEMONSTRATIONS = "demonstrations"
# Trajectories of each policy that the picture shows.
_SHOWN = 50
_FREE, _HIT = "tab:blue", "tab:red"


class Explored(NamedTuple):
    """What a policy did, or what the demonstrations are.

    paths: projected trajectories in task units, [L, 2] each.
    score: mean of the first of `SCORES` that the task has; None of demonstrations.
    """

    label: str
    run: str
    data: str
    paths: list[np.ndarray]
    numbers: Exploration
    routes: Routes | None
    score: float | None


def make_tables(found: Sequence[Explored], plane: Plane, task: str) -> str:
    """One table for each data set, in Markdown, and what their units are."""
    parts = []
    for name in dict.fromkeys(x.data for x in found):
        own = [x for x in found if x.data == name]
        header = ["policy", "runs", "episodes", "score"]
        if plane.routes:
            header += ["collisions", "modes", "entropy of routes (bits)"]
        header += ["distance", "95 %", "near", "cells", "cells per episode"]
        header += ["within", "between", "structure"]
        rows = []
        for label in dict.fromkeys(x.label for x in own):
            rows.append(_cells([x for x in own if x.label == label]))
        parts += [f"{name}\n", tables.markdown(header, rows), ""]
    where = f"entries {plane.dims[0]} and {plane.dims[1]} of an observation of {task}"
    return "\n".join(parts) + (
        f"\nPositions are {where}, in {plane.unit}; a cell is {plane.cell:g} wide. Of "
        "several runs: means. docs/studies.md says what each number means.\n"
    )


def _cells(group: Sequence[Explored]) -> list[str]:
    """A row of the table: the means over runs, shares over all of their episodes."""
    count = sum(len(x.paths) for x in group)
    scores = [x.score for x in group if x.score is not None]
    cells = [group[0].label, str(len(group)), str(count)]
    cells.append(tables.number(float(np.mean(scores)), 3) if scores else "-")
    routes = [x.routes for x in group if x.routes is not None]
    if routes:
        hits = float(np.mean(np.concatenate([x.collision for x in routes])))
        ends = intervals.success_interval(hits, count)
        cells.append(f"{hits:.2g} [{ends[0]:.2g}, {ends[1]:.2g}]")
        modes = shares([mode for x in routes for mode in x.mode])
        cells.append(", ".join(f"{mode}: {x:.2g}" for mode, x in modes.items()))
        cells.append(f"{entropy_of_routes([y for x in routes for y in x.route]):.2f}")
    means = Exploration(*np.mean([x.numbers for x in group], axis=0))
    return cells + [tables.number(x, 3) for x in means]


def entropy_of_routes(routes: Sequence[str]) -> float:
    """The entropy of the routes of episodes that have one, in bits."""
    ended = [route for route in routes if route != NO_MODE]
    return entropy(list(shares(ended).values()))


def rows_of(found: Sequence[Explored]) -> str:
    header = ["data", "label", "run", "episodes", "score", "collisions", "entropy"]
    rows: list[list[Any]] = []
    for x in found:
        cells: list[Any] = [x.data, x.label, x.run, len(x.paths)]
        cells.append("" if x.score is None else x.score)
        if x.routes is None:
            cells += ["", ""]
        else:
            cells.append(float(np.mean(x.routes.collision)))
            cells.append(entropy_of_routes(x.routes.route))
        rows.append([*cells, *x.numbers])
    return tables.comma_separated([*header, *Exploration._fields], rows)


def draw(
    path: Path,
    found: Sequence[Explored],
    plane: Plane,
    task: str,
    config: ConfigDict,
) -> None:
    """A row of panels for each label and a column for each data set."""
    columns = list(dict.fromkeys(x.data for x in found))
    labels = dict.fromkeys(x.label for x in found if x.label != DEMONSTRATIONS)
    figure, axes = plt.subplots(
        len(labels),
        len(columns),
        figsize=(4 * len(columns), 4.4 * len(labels)),
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    for row, label in zip(axes, labels):
        for ax, name in zip(row, columns):
            own = [x for x in found if x.data == name and x.label == label]
            known = [x for x in found if x.data == name and x.score is None]
            plots.draw_scene(ax, task, config.env.options)
            _draw_paths(ax, own, known[0].paths)
            ax.set_title(f"{label}, {name}", fontsize="medium")
            ax.set(xlabel=plane.names[0], ylabel=plane.names[1])
            ax.label_outer()
    axes[0][0].legend(loc="lower left", fontsize="x-small")
    plots.save_figure(figure, path)


def _draw_paths(
    ax: Axes, own: Sequence[Explored], demonstrations: Sequence[np.ndarray]
) -> None:
    for points in demonstrations:
        ax.plot(*points.T, color="black", linewidth=3, alpha=0.12, zorder=1)
    ax.plot([], [], color="black", linewidth=3, alpha=0.3, label=DEMONSTRATIONS)
    for color, label in ((_FREE, "exploring"), (_HIT, "exploring, with a collision")):
        ax.plot([], [], color=color, label=label)
    for x in own[:1]:  # One run of several, so that panels are alike.
        hit = np.zeros(len(x.paths)) if x.routes is None else x.routes.collision
        for points, bad in list(zip(x.paths, hit))[:_SHOWN]:
            color = _HIT if bad else _FREE
            ax.plot(*points.T, color=color, linewidth=0.8, alpha=0.6, zorder=2)

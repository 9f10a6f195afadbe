"""How trajectories explore: numbers that compare them with demonstrations.

The DPPO paper (arXiv 2409.00588, Sec. 6) says that a diffusion policy explores in a
structured way, near the data: its noise decides where a whole trajectory goes. That of
a Gaussian policy makes every single step uncertain. These functions say so in numbers.
A trajectory is an array [L, 2], the position after each of its L control steps. The
lengths are in the units of the positions.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

# Control steps over which the path of a trajectory is averaged, see `within`.
WINDOW = 9
Trajectories = Sequence[np.ndarray]


class Exploration(NamedTuple):
    """Numbers of N trajectories.

    distance, distance_95: mean and 95 % quantile, over all positions, of the distance
        to the nearest position of the demonstrations.
    near: share of the positions that lie within one cell of one of these.
    cells: cells of a square grid that were visited by at least one trajectory.
    cells_per_episode: mean number of cells that a trajectory visits. `cells` divided by
        it is between 1 (all take the same way) and N (no two meet).
    within: root mean square distance of positions from the path of their own
        trajectory; the path is a mean over `WINDOW` control steps. Noise on single
        steps makes it large, so does a sharp turn.
    between: root mean square distance of positions from the mean of all trajectories at
        the same control step.
    structure: between / within.
    """

    distance: float
    distance_95: float
    near: float
    cells: int
    cells_per_episode: float
    within: float
    between: float
    structure: float


def measure(
    trajectories: Trajectories, demonstrations: Trajectories, *, cell: float
) -> Exploration:
    """All numbers of trajectories.

    Args:
        trajectories: at least one.
        demonstrations: likewise.
        cell: length of a side of a cell.
    """
    distances = nearest(trajectories, demonstrations)
    visited = [visited_cells(x, cell) for x in trajectories]
    inner, outer = within(trajectories), between(trajectories)
    return Exploration(
        distance=float(distances.mean()),
        distance_95=float(np.quantile(distances, 0.95)),
        near=float((distances <= cell).mean()),
        cells=len(set().union(*visited)),
        cells_per_episode=float(np.mean([len(x) for x in visited])),
        within=inner,
        between=outer,
        structure=outer / inner if inner > 0 else float("nan"),
    )


def measure_demonstrations(demonstrations: Trajectories, *, cell: float) -> Exploration:
    """The same numbers of demonstrations, each compared with the others.

    They are what a policy would reach that imitates perfectly. Distances of a single
    demonstration are NaN.
    """
    found = measure(demonstrations, demonstrations, cell=cell)
    parts = [
        nearest([own], [x for x in demonstrations if x is not own])
        for own in demonstrations
        if len(demonstrations) > 1
    ]
    distances = np.concatenate(parts) if parts else np.full(1, np.nan)
    return found._replace(
        distance=float(distances.mean()),
        distance_95=float(np.quantile(distances, 0.95)),
        near=float((distances <= cell).mean()) if parts else float("nan"),
    )


def nearest(trajectories: Trajectories, demonstrations: Trajectories) -> np.ndarray:
    """Distance of every position to the nearest one of the demonstrations, [sum L]."""
    tree = cKDTree(np.concatenate(list(demonstrations)))
    return tree.query(np.concatenate(list(trajectories)))[0]


def visited_cells(trajectory: np.ndarray, cell: float) -> set[tuple[int, int]]:
    """The cells of a grid with sides of length `cell` in which positions lie."""
    return {(int(i), int(j)) for i, j in np.floor(trajectory / cell)}


def within(trajectories: Trajectories, window: int = WINDOW) -> float:
    """Root mean square distance of positions from the path of their own trajectory.

    The path at a control step is the mean of the `window` positions around it. Steps
    that have not as many, at both ends, do not count, nor do shorter trajectories.

    Args:
        window: odd.
    """
    assert window % 2
    half, squares = window // 2, [np.zeros(0)]
    for x in trajectories:
        if len(x) >= window:
            windows = np.lib.stride_tricks.sliding_window_view(x, window, axis=0)
            away = x[half : len(x) - half] - windows.mean(axis=-1)
            squares.append((away**2).sum(axis=-1))
    joined = np.concatenate(squares)
    return float(np.sqrt(joined.mean())) if len(joined) else float("nan")


def between(trajectories: Trajectories) -> float:
    """Root mean square distance from the mean of all trajectories at a control step.

    Control steps that less than two trajectories reach do not count.
    """
    squares = [np.zeros(0)]
    for step in range(max(map(len, trajectories))):
        now = np.stack([x[step] for x in trajectories if len(x) > step])
        if len(now) > 1:
            squares.append(((now - now.mean(axis=0)) ** 2).sum(axis=-1))
    joined = np.concatenate(squares)
    return float(np.sqrt(joined.mean())) if len(joined) else float("nan")


def shares(modes: Sequence[Hashable]) -> dict[Hashable, float]:
    """Which share of the episodes has each mode, in the order of the modes."""
    count = len(modes)
    return {
        mode: modes.count(mode) / count
        for mode in sorted(set(modes), key=lambda x: (x == NO_MODE, str(x)))
    }


# The mode of an episode that ended before one was chosen.
NO_MODE = "none"


def entropy(shares_of_modes: Sequence[float]) -> float:
    """The entropy of a distribution in bits: 0 for one mode, 1 for two equal ones."""
    p = np.asarray([x for x in shares_of_modes if x > 0])
    return float(-(p * np.log2(p)).sum()) + 0.0  # Never -0.

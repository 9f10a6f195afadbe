"""Which two entries of an observation a study of exploration looks at."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.demonstrations.dataset import Episodes
from dppo_jax.envs.tasks import avoid
from dppo_jax.errors import SettingsError
from dppo_jax.types import Array
from experiments.studies.exploration import NO_MODE


class Routes(NamedTuple):
    """What trajectories met on their way; one entry for each.

    collision: whether something was touched.
    mode: how the task was solved, `NO_MODE` where it is open.
    route: the same in more detail.
    """

    collision: np.ndarray
    mode: list[str]
    route: list[str]


class Plane(NamedTuple):
    """Two entries of an observation, and how lengths in their plane are told.

    dims: their indices.
    scale: from the units of the task to those of the numbers; None: half of the range
        of each entry in the demonstrations is 1.
    unit: of the numbers.
    cell: side of a cell in these units.
    names: of the axes.
    counted: a projected trajectory [L, 2] -> the part of it that the numbers are of.
    routes: trajectories in task units -> what they met; None: nothing is known.
    """

    dims: tuple[int, int]
    scale: float | None
    unit: str
    cell: float
    names: tuple[str, str]
    counted: Callable[[np.ndarray], np.ndarray] = lambda trajectory: trajectory
    routes: Callable[[Sequence[np.ndarray]], Routes] | None = None


def avoid_routes(trajectories: Sequence[np.ndarray]) -> Routes:
    """Collisions and gaps of trajectories of the rod, positions [L, 2] in metres.

    The mode is the gap in the third row, the route are those of all rows.
    """
    longest = max(map(len, trajectories))
    # The last position again and again changes neither gaps nor collisions.
    padded = np.stack(
        [np.pad(x, ((0, longest - len(x)), (0, 0)), "edge") for x in trajectories]
    )
    gaps, collisions = map(np.asarray, _follow(jnp.asarray(padded, jnp.float32)))
    codes = [[str(int(gap)) for gap in row] for row in gaps]
    has_ended = np.all(gaps >= 0, axis=1).tolist()
    return Routes(
        collision=collisions > 0,
        mode=[row[2] if gap >= 0 else NO_MODE for row, gap in zip(codes, gaps[:, 2])],
        route=["-".join(x) if end else NO_MODE for x, end in zip(codes, has_ended)],
    )


@jax.jit
def _follow(positions: Array) -> tuple[Array, Array]:
    """The gaps [N, 3] and the collisions [N] of trajectories [N, L, 2]."""

    def one(positions: Array) -> tuple[Array, Array]:
        def step(gaps: Array, position: Array) -> tuple[Array, Array]:
            return avoid.gap_codes(gaps, position), avoid.touches(position)

        gaps, touched = jax.lax.scan(step, -jnp.ones(3), positions)
        return gaps, touched.max()

    return jax.vmap(one)(positions)


def up_to_the_reward(trajectory: np.ndarray) -> np.ndarray:
    """The positions [L, 2] of the rod up to the first one beyond the reward line.

    There the demonstrations end, while the episodes of a policy go on.
    """
    beyond = np.flatnonzero(trajectory[:, 1] > avoid.REWARD_Y)
    return trajectory[: beyond[0] + 1] if len(beyond) else trajectory


PLANES = {
    "avoid": Plane(
        dims=(2, 3),
        scale=100.0,
        unit="cm",
        cell=1.0,
        names=("x (m)", "y (m)"),
        counted=up_to_the_reward,
        routes=avoid_routes,
    )
}
# Of the range of an entry in the demonstrations, 2, in other planes.
_CELL = 0.05


def find_plane(task: str, dims: str, num_entries: int) -> Plane:
    """The plane that --dims names, or the one of the task.

    Args:
        dims: such as "0,1"; empty: that of the task.
        num_entries: Do.

    Raises:
        SettingsError: no plane is known, or `dims` are not two different entries.
    """
    if not dims:
        if task not in PLANES:
            raise SettingsError(
                f"which two of the {num_entries} entries of an observation of {task} "
                "to look at is not known; pass --dims=I,J, such as --dims=0,1."
            )
        return PLANES[task]
    try:
        first, second = (int(x) for x in dims.split(","))
    except ValueError:
        raise SettingsError(
            f"--dims={dims} must be two numbers, such as --dims=0,1."
        ) from None
    if first == second or not all(0 <= x < num_entries for x in (first, second)):
        raise SettingsError(
            f"--dims={dims} must be two different entries of an observation, which "
            f"{task} numbers 0 to {num_entries - 1}."
        )
    names = (f"observation[{first}]", f"observation[{second}]")
    return Plane((first, second), None, "half ranges", _CELL, names)


def project(plane: Plane, trajectories: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Observations in task units, [L, Do] each -> their two entries, [L, 2]."""
    return [np.asarray(x, np.float64)[:, list(plane.dims)] for x in trajectories]


def in_units(
    plane: Plane,
    trajectories: Sequence[np.ndarray],
    demonstrations: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """What counts of projected trajectories [L, 2], in the units of the numbers."""
    trajectories = [plane.counted(x) for x in trajectories]
    if plane.scale is not None:
        return [plane.scale * x for x in trajectories]
    joined = np.concatenate(list(demonstrations))
    half = (joined.max(axis=0) - joined.min(axis=0)) / 2
    half = np.where(half > 0, half, 1.0)  # A constant entry keeps its unit.
    return [x / half for x in trajectories]


def as_trajectories(episodes: Episodes) -> list[np.ndarray]:
    """The observations of each demonstration, [L, Do]."""
    ends = np.cumsum(episodes.episode_lengths)
    return np.split(episodes.observations["state"], ends[:-1])

"""D4RL: one HDF5 file with flat tables over all steps (Fu et al., arXiv 2004.07219).

`observations [N, Do]`, `actions [N, Da]`, `rewards [N]`, `terminals [N]` (the task
ended) and `timeouts [N]` (a time limit ended the episode), all in task units. Row t
holds an action and the observation before it. `infos/*` and all else are not read.
"""

import os
from pathlib import Path

import h5py
import numpy as np

from dppo_jax.demonstrations.dataset import (
    Episodes,
    check_episodes,
    unnormalize_episodes,
)
from dppo_jax.demonstrations.formats.tables import (
    as_float32,
    check_max_episodes,
    flat,
    member,
    open_hdf5,
    read_optional_rows,
    read_rows,
)
from dppo_jax.errors import SettingsError


def load_d4rl(path: str | os.PathLike, max_episodes: int | None = None) -> Episodes:
    """Read a D4RL file; of observations, actions and rewards only the rows to keep.

    An episode ends where `terminals` or `timeouts` is set. Steps after the last end are
    an unfinished episode and are left out, as D4RL itself does.

    Returns:
        Episodes in task units, float32; without rewards if the file has none.

    Raises:
        SettingsError: a file that is missing or unreadable, a missing table, tables of
            unequal length, no finished episode, NaN or infinite values.
    """
    path = Path(path)
    check_max_episodes(max_episodes)
    with open_hdf5(path) as file:
        ends = {
            name: flat(read_rows(file, name, str(path)), name, str(path)) > 0
            for name in ("terminals", "timeouts")
        }
        _check_lengths(file, len(ends["terminals"]), path)
        lengths = _episode_lengths(ends["terminals"] | ends["timeouts"], path)
        lengths = lengths[:max_episodes]
        steps = int(lengths.sum())
        state = read_rows(file, "observations", str(path), steps)
        actions = read_rows(file, "actions", str(path), steps)
        rewards = read_optional_rows(file, "rewards", str(path), steps)
    episodes = Episodes(
        observations={"state": as_float32(state)},
        actions=as_float32(actions),
        episode_lengths=lengths,
        rewards=None if rewards is None else flat(rewards, "rewards", str(path)),
        terminals=ends["terminals"][:steps],
    )
    check_episodes(episodes, str(path))
    return episodes


def save_d4rl(path: str | os.PathLike, episodes: Episodes) -> None:
    """Write episodes as a D4RL file, in task units.

    Every episode without a terminal gets a timeout at its last step.

    Raises:
        SettingsError: the file exists, or the episodes are inconsistent, have images,
            or have a terminal before their last step, where readers would split them.
    """
    path = Path(path)
    check_episodes(episodes, "episodes")
    if "rgb" in episodes.observations:
        raise SettingsError(
            f"{path}: D4RL files hold no images; write dppo_npz instead."
        )
    raw = unnormalize_episodes(episodes)
    ends = np.zeros(len(raw.actions), bool)
    ends[np.cumsum(raw.episode_lengths) - 1] = True
    terminals = np.zeros_like(ends) if raw.terminals is None else raw.terminals
    early = np.flatnonzero(terminals & ~ends)
    if len(early):
        raise SettingsError(
            f"{path}: terminals are set within episodes in {len(early)} rows, first "
            f"{early[:5].tolist()}, where D4RL would split them; write dppo_npz "
            "instead."
        )
    tables = {
        "observations": raw.observations["state"],
        "actions": raw.actions,
        "rewards": raw.rewards,
        "terminals": terminals,
        "timeouts": ends & ~terminals,
    }
    try:
        with h5py.File(path, "x") as file:
            for name, table in tables.items():
                if table is not None:
                    file.create_dataset(name, data=table, compression="gzip")
    except FileExistsError:
        raise SettingsError(
            f"{path} exists; remove it, or give another name."
        ) from None


def _check_lengths(file: h5py.File, steps: int, path: Path) -> None:
    """Check that all tables are equally long; slices of them would hide extra rows."""
    for name in ("observations", "actions", "rewards", "timeouts"):
        table = member(file, name, str(path))
        rows = steps if getattr(table, "ndim", 0) == 0 else len(table)
        if rows != steps:
            raise SettingsError(
                f"{path}: {name} has {rows} rows, but terminals has {steps}; write the "
                "data set again."
            )


def _episode_lengths(end: np.ndarray, path: Path) -> np.ndarray:
    """Lengths of finished episodes [E] from flags of last steps [N]."""
    last = np.flatnonzero(end)
    if len(last) == 0:
        raise SettingsError(
            f"{path}: none of the {len(end)} steps has terminals or timeouts set, so "
            "there is no finished episode; set timeouts where episodes end."
        )
    return np.diff(last, prepend=-1)

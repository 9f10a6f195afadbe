"""D4RL: one HDF5 file with flat tables over all steps (Fu et al., arXiv 2004.07219).

`observations [N, Do]`, `actions [N, Da]`, `rewards [N]`, `terminals [N]` (the task
ended) and `timeouts [N]` (a time limit cut in), all in task units. Row t holds the
observation that the action of row t answered. `infos/*` and the rest are not read.
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
    check_max_episodes,
    flat,
    open_hdf5,
    read_optional_rows,
    read_rows,
)
from dppo_jax.errors import SettingsError


def load_d4rl(path: str | os.PathLike, max_episodes: int | None = None) -> Episodes:
    """Read a D4RL file; only the rows that are kept leave the disk.

    An episode ends where `terminals` or `timeouts` is set. Steps after the last end
    are an episode that nobody knows the end of and are left out, as D4RL itself does.

    Returns:
        Episodes in task units, float32; no rewards where the file has none.

    Raises:
        SettingsError: one line that names the file and what is wrong with it: missing,
            unreadable, a missing table, tables of unequal length, no finished episode,
            NaN or infinite values.
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
        observations={"state": state.astype(np.float32)},
        actions=actions.astype(np.float32),
        episode_lengths=lengths,
        rewards=None if rewards is None else flat(rewards, "rewards", str(path)),
        terminals=ends["terminals"][:steps],
    )
    check_episodes(episodes, str(path))
    return episodes


def save_d4rl(path: str | os.PathLike, episodes: Episodes) -> None:
    """Write episodes as a D4RL file, in task units.

    Every episode that did not end by itself gets a timeout at its last step.

    Raises:
        SettingsError: the file exists, the episodes are not consistent, have images, or
            a terminal before their last step, which every reader would cut them at.
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
            f"{early[:5].tolist()}; D4RL would cut the episodes there."
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
    """Slices would hide what a table has too many of, so its shape is asked for."""
    for name in ("observations", "actions", "rewards", "timeouts"):
        table = file.get(name)
        rows = steps if getattr(table, "ndim", 0) == 0 else len(table)
        if rows != steps:
            raise SettingsError(
                f"{path}: {name} has {rows} rows, but terminals has {steps}; write the "
                "data set again."
            )


def _episode_lengths(end: np.ndarray, path: Path) -> np.ndarray:
    """Steps per finished episode [E] from the flags [N] of last steps."""
    last = np.flatnonzero(end)
    if len(last) == 0:
        raise SettingsError(
            f"{path}: none of the {len(end)} steps has terminals or timeouts set, so "
            "there is no finished episode; set timeouts where episodes end."
        )
    return np.diff(last, prepend=-1)

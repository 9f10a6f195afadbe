"""robomimic and robosuite: one HDF5 file with a group per episode.

`data/demo_<i>` holds `actions [T, Da]` and either `obs/<key>` (robomimic) or the
simulator's `states [T, D]` (robosuite's recordings); `rewards [T]` and `dones [T]`
where they were recorded; `mask/<filter>` lists the names of a subset of episodes.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from dppo_jax.demonstrations.dataset import Episodes, concatenate
from dppo_jax.demonstrations.formats.tables import (
    check_max_episodes,
    flat,
    one_episode,
    open_hdf5,
    read_optional_rows,
    read_rows,
    require_key,
)
from dppo_jax.errors import SettingsError

# What a policy sees of each arm, and then of the task; the order that DPPO's robomimic
# policies were trained with.
_ARM_KEYS = ("eef_pos", "eef_quat", "gripper_qpos")
_OBJECT_KEY = "object"
_STATES_KEY = "states"


def load_robomimic(
    path: str | os.PathLike,
    max_episodes: int | None = None,
    *,
    obs_keys: Sequence[str] | None = None,
    filter_key: str | None = None,
) -> Episodes:
    """Read a robomimic or robosuite file, one episode at a time, by number.

    Args:
        path: the HDF5 file.
        max_episodes: keep the first so many episodes; None keeps all.
        obs_keys: entries of `obs` that become the state, side by side; "states" is the
            simulator's state. Entries of images become "rgb", stacked along channels;
            no image is read unless it is named. None takes, per arm,
            `robot<i>_eef_pos`, `robot<i>_eef_quat`, `robot<i>_gripper_qpos`, and then
            `object`; or `states` in a file without `obs`.
        filter_key: keep only the episodes that `mask/<filter_key>` lists.

    Returns:
        Episodes in task units, float32. A terminal is set where `dones` is set at the
        last step; an earlier one did not end the episode.

    Raises:
        SettingsError: one line that names the file, the episode and what is wrong with
            it.
    """
    path = Path(path)
    check_max_episodes(max_episodes)
    with open_hdf5(path) as file:
        names = _episode_names(file, path, filter_key)[:max_episodes]
        data = file["data"]
        keys = tuple(obs_keys or _default_keys(data[names[0]], f"{path}: {names[0]}"))
        parts = [_read(data[name], keys, f"{path}: {name}") for name in names]
    return concatenate(parts, str(path))


def _read(demo: h5py.Group, keys: Sequence[str], source: str) -> Episodes:
    observation = {
        key: (
            read_rows(demo, _STATES_KEY, source)
            if key == _STATES_KEY
            else read_rows(_observations(demo, source), key, f"{source}/obs")
        )
        for key in keys
    }
    dones = read_optional_rows(demo, "dones", source)
    return one_episode(
        observation,
        read_rows(demo, "actions", source),
        source,
        rewards=read_optional_rows(demo, "rewards", source),
        ended=None if dones is None else bool(flat(dones, "dones", source)[-1:].any()),
    )


def _episode_names(file: h5py.File, path: Path, filter_key: str | None) -> list[str]:
    """Names of the groups in the order of their numbers: demo_2 before demo_10."""
    data = file.get("data")
    groups = data if isinstance(data, h5py.Group) else {}
    names = [name for name in groups if isinstance(groups.get(name), h5py.Group)]
    if filter_key is not None:
        mask = file.get("mask")
        masks = mask if isinstance(mask, h5py.Group) else {}
        require_key(filter_key, list(masks), "filter_key", str(path))
        chosen = [
            name.decode() if isinstance(name, bytes) else str(name)
            for name in np.asarray(masks[filter_key]).ravel()
        ]
        missing = [name for name in chosen if name not in names]
        if missing:
            raise SettingsError(
                f"{path}: mask/{filter_key} lists {missing[0]}, which is not among the "
                f"{len(names)} episodes in data; repair the mask."
            )
        names = chosen
    if not names:
        raise SettingsError(
            f"{path} holds no episodes (data/demo_*"
            + (f" in mask/{filter_key})" if filter_key else ")")
            + "; check the file."
        )

    def number(name: str) -> tuple[float, str]:
        digits = re.search(r"\d+$", name)
        return (int(digits[0]) if digits else float("inf"), name)

    return sorted(names, key=number)


def _observations(demo: h5py.Group, source: str) -> h5py.Group:
    group = demo.get("obs")
    if not isinstance(group, h5py.Group):
        raise SettingsError(
            f"{source} lacks obs; it holds {', '.join(demo)}. Extract them with "
            "robomimic's dataset_states_to_obs.py, or use obs_keys=states."
        )
    return group


def _default_keys(demo: h5py.Group, source: str) -> tuple[str, ...]:
    if "obs" not in demo and _STATES_KEY in demo:
        return (_STATES_KEY,)
    there = list(_observations(demo, source))
    arms = sorted({m[0] for key in there if (m := re.match(r"robot\d+", key))})
    keys = (*(f"{arm}_{key}" for arm in arms for key in _ARM_KEYS), _OBJECT_KEY)
    missing = [key for key in keys if key not in there]
    if missing:
        raise SettingsError(
            f"{source}/obs lacks {', '.join(missing)}; choose the state's parts with "
            f"obs_keys, among {', '.join(there)}."
        )
    return keys

"""robomimic and robosuite: one HDF5 file with a group per episode.

`data/demo_<i>` holds `actions [T, Da]`, either `obs/<key>` (robomimic) or the
simulator's `states [T, D]` (robosuite's recordings), and optionally `rewards [T]` and
`dones [T]`. `mask/<filter>` lists the names of a subset of episodes.
`robosuite_scenes` makes observations of this project's tasks of them.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dppo_jax.demonstrations.dataset import Episodes, concatenate
from dppo_jax.demonstrations.formats import robosuite_scenes
from dppo_jax.demonstrations.formats.robosuite_origin import (
    check_origin,
    convert_actions,
)
from dppo_jax.demonstrations.formats.tables import (
    check_max_episodes,
    flat,
    member,
    names,
    one_episode,
    open_hdf5,
    read_optional_rows,
    read_rows,
    require_key,
)
from dppo_jax.errors import SettingsError
from dppo_jax.expansion import check_expansion

# Observations of each arm, and then of the task, in the order that DPPO's robomimic
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
    task: str | None = None,
) -> Episodes:
    """Read a robomimic or robosuite file episode by episode, in the order of numbers.

    Args:
        path: the HDF5 file.
        max_episodes: read only this many episodes, from the first; None: all.
        obs_keys: entries of `obs` to concatenate to the state; "states" is the
            simulator's state. Entries that are images become "rgb", stacked along
            channels; only named ones are read. None: `robot<i>_eef_pos`,
            `robot<i>_eef_quat` and `robot<i>_gripper_qpos` of each arm, then `object`;
            or `states` in a file without `obs`.
        filter_key: read only the episodes that `mask/<filter_key>` lists.
        task: make the observations and actions of this task of the project, see
            `robosuite_scenes` and `robosuite_origin`; needs the default of `obs_keys`.

    Returns:
        Episodes in task units, float32. The last step is a terminal if `dones` is set
        there; `dones` of earlier steps are ignored.

    Raises:
        SettingsError: a missing or invalid file; the message names it and the episode.
    """
    path = Path(path)
    check_max_episodes(max_episodes)
    if task is not None and obs_keys:
        raise SettingsError(
            f"task={task!r} chooses the entries of its observation; leave out obs_keys="
            f"{obs_keys!r}."
        )
    with open_hdf5(path) as file:
        demos = _episodes(file, path, filter_key)[:max_episodes]
        origin: dict[str, Any] = {}
        if task is not None:
            origin = dict(member(file, "data", str(path)).attrs)
            check_origin(origin, task, str(path))
        name, first = demos[0]
        keys = tuple(obs_keys or _default_keys(first, f"{path}: {name}"))
        parts = [_read(demo, keys, f"{path}: {name}") for name, demo in demos]
    episodes = concatenate(parts, str(path))
    if task is None:
        return episodes
    episodes = robosuite_scenes.convert(
        episodes, task, str(path), states=keys == (_STATES_KEY,)
    )
    actions = convert_actions(episodes.actions, origin, str(path))
    return episodes._replace(actions=actions)


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


def _episodes(
    file: h5py.File, path: Path, filter_key: str | None
) -> list[tuple[str, h5py.Group]]:
    """Episodes and their names, sorted by number: demo_2 before demo_10."""
    data = member(file, "data", str(path))
    if not isinstance(data, h5py.Group):
        data = {}
    members = {
        name: member(data, name, f"{path}: data")
        for name in names(data, f"{path}: data")
    }
    demos = {name: x for name, x in members.items() if isinstance(x, h5py.Group)}
    chosen = list(demos)
    if filter_key is not None:
        chosen = _masked(file, path, filter_key)
        missing = [name for name in chosen if name not in demos]
        if missing:
            raise SettingsError(
                f"{path}: mask/{filter_key} lists {missing[0]}, which is not among the "
                f"{len(demos)} episodes in data; correct the mask."
            )
    if not chosen:
        raise SettingsError(
            f"{path} holds no episodes (data/demo_*"
            + (f" in mask/{filter_key})" if filter_key else ")")
            + "; check the file."
        )

    def number(name: str) -> tuple[float, str]:
        digits = re.search(r"\d{1,300}$", name)  # As many as a float can hold.
        return (float(digits[0]) if digits else float("inf"), name)

    return [(name, demos[name]) for name in sorted(chosen, key=number)]


def _masked(file: h5py.File, path: Path, filter_key: str) -> list[str]:
    """Names of the episodes of a subset."""
    mask = member(file, "mask", str(path))
    masks = mask if isinstance(mask, h5py.Group) else {}
    require_key(filter_key, names(masks, f"{path}: mask"), "filter_key", str(path))
    table = member(masks, filter_key, f"{path}: mask")
    if not isinstance(table, h5py.Dataset) or table.dtype.kind not in "SO":
        raise SettingsError(
            f"{path}: mask/{filter_key} must be a list of names of episodes."
        )
    check_expansion(table.nbytes, table.id.get_storage_size(), f"mask/{filter_key}")
    return [
        name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        for name in np.asarray(table).ravel()
    ]


def _observations(demo: h5py.Group, source: str) -> h5py.Group:
    group = member(demo, "obs", source)
    if not isinstance(group, h5py.Group):
        raise SettingsError(
            f"{source} lacks obs; it holds {', '.join(names(demo, source))}. Extract "
            "them with robomimic's dataset_states_to_obs.py, or use obs_keys=states."
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
            f"{source}/obs lacks {', '.join(missing)}; choose those of the state with "
            f"obs_keys, among {', '.join(there)}."
        )
    return keys

"""Minari data sets, read and written by the package `minari` (`dppo_jax[minari]`).

A data set is a folder, such as `~/.minari/datasets/mujoco/hopper/medium-v0`. Its folder
`data/` holds `metadata.json` and the episodes. An episode of T steps has T + 1
observations.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dppo_jax.demonstrations.dataset import (
    Episodes,
    check_episodes,
    concatenate,
    unnormalize_episodes,
)
from dppo_jax.demonstrations.formats.tables import (
    check_max_episodes,
    check_tables,
    import_extra,
    one_episode,
    open_hdf5,
    require_key,
)
from dppo_jax.errors import SettingsError

_METADATA = "metadata.json"
# Our own entry in the metadata, for data without rewards, which Minari requires.
_NO_REWARDS = "rewards_are_placeholders"


def load_minari(
    folder: str | os.PathLike,
    max_episodes: int | None = None,
    *,
    obs_keys: Sequence[str] | None = None,
) -> Episodes:
    """Read a Minari data set, one episode at a time.

    The observation after the last action is left out, because no action follows it.

    Args:
        folder: the data set, or the `data` folder in it.
        max_episodes: read only this many episodes, from the first; None: all.
        obs_keys: entries of a dictionary observation to concatenate to the state,
            `outer/inner` for nested ones; entries that are images become "rgb".
            Required if there are several entries.

    Returns:
        Episodes in task units, float32.

    Raises:
        SettingsError: not a data set, a missing package, actions outside their space,
            NaN or infinite values, or a missing entry.
    """
    folder = minari_folder(Path(folder))
    check_max_episodes(max_episodes)
    _check_metadata(folder)
    for path in sorted(folder.glob("*.hdf5")):
        with open_hdf5(path) as file:
            check_tables(file, str(path))
    _check_arrow_files(folder)
    minari = import_extra(
        "minari", "minari", f"{folder} is a Minari data set; reading it"
    )
    with _trusting(folder):
        dataset = minari.MinariDataset(folder)
        space = dataset.action_space
        rewarded = not dataset.storage.metadata.get(_NO_REWARDS, False)
        indices = dataset.episode_indices[:max_episodes]
        episodes = iter(dataset.iterate_episodes(indices))
    parts: list[Episodes] = []
    while True:
        with _trusting(folder):
            episode = next(episodes, None)
        if episode is None:
            return concatenate(parts, str(folder))
        source = f"{folder}: episode {episode.id}"
        parts.append(_read(episode, obs_keys, space, rewarded, source))


@contextlib.contextmanager
def _trusting(folder: Path) -> Iterator[None]:
    """Runs the package, which trusts its files and fails anyhow if they are damaged."""
    try:
        yield
    except (SettingsError, MemoryError):
        raise
    except Exception as error:
        raise SettingsError(
            f"{folder} is not a readable Minari data set ({error!r}); download it "
            "again."
        ) from error


def _check_arrow_files(folder: Path) -> None:
    """Check the files of a data set that is stored in Arrow's format.

    Their buffers are used as they are, so that wrong positions in them would be read
    from elsewhere in memory.
    """
    # The package reads folders that are named by the number of an episode.
    for path in sorted(folder.glob("[0-9]*/*")):
        if path.name == _METADATA or path.name.startswith((".", "_")):
            continue  # The package does not read them as tables.
        if not path.is_file():
            raise SettingsError(f"{path} is no file; copy the data again.")
        ipc = import_extra(
            "pyarrow.ipc", "lerobot", f"{path} is an Arrow file; reading"
        )
        with _trusting(path):
            with ipc.open_file(path) as file:
                for index in range(file.num_record_batches):
                    file.get_batch(index).validate(full=True)


def save_minari(folder: str | os.PathLike, episodes: Episodes) -> None:
    """Write episodes as a Minari data set, in task units.

    The action space is the bounding box of the actions, the observation space is
    unbounded. `Episodes` have no observation after the last action, so the last one is
    repeated. Missing rewards are written as zeros, with a note in the metadata.

    Raises:
        SettingsError: the folder exists, the package is missing, or the episodes are
            inconsistent or have images.
    """
    folder = Path(folder)
    if folder.exists():
        raise SettingsError(f"{folder} exists; remove it, or give another name.")
    check_episodes(episodes, "episodes")
    if "rgb" in episodes.observations:
        raise SettingsError(f"{folder}: images can only be written as dppo_npz.")
    minari = import_extra("minari", "minari", "writing a Minari data set")
    storages = import_extra("minari.dataset.minari_storage", "minari", "writing Minari")
    Box = import_extra("gymnasium.spaces", "minari", "writing Minari").Box
    raw = unnormalize_episodes(episodes)
    low, high = raw.actions.min(axis=0), raw.actions.max(axis=0)
    folder.mkdir(parents=True)
    storage = storages.MinariStorage.new(
        folder / "data",
        Box(-np.inf, np.inf, raw.observations["state"].shape[1:], np.float32),
        Box(low, high, dtype=np.float32),
    )
    # Minari requires identifiers of word characters with a version at the end.
    name = re.sub(r"-v\d+$", "", re.sub(r"[^-\w]", "-", folder.name)) or "data"
    storage.update_metadata(
        {
            "dataset_id": f"{name}-v0",
            "minari_version": minari.__version__,
            _NO_REWARDS: raw.rewards is None,
        }
    )
    ends = np.cumsum(raw.episode_lengths)
    storage.update_episodes(
        _buffer(minari, raw, slice(end - length, end))
        for length, end in zip(raw.episode_lengths, ends)
    )


def minari_folder(folder: Path) -> Path:
    """The folder that holds `metadata.json`: `folder`, or `data` in it."""
    return folder / "data" if (folder / "data" / _METADATA).is_file() else folder


def _buffer(minari: Any, raw: Episodes, rows: slice) -> Any:
    state, actions = raw.observations["state"][rows], raw.actions[rows]
    steps = len(actions)
    last = np.arange(steps) == steps - 1
    terminals = np.zeros(steps, bool) if raw.terminals is None else raw.terminals[rows]
    rewards = np.zeros(steps, np.float32) if raw.rewards is None else raw.rewards[rows]
    buffer = import_extra("minari.data_collector.episode_buffer", "minari", "Minari")
    return buffer.EpisodeBuffer(
        observations=np.concatenate([state, state[-1:]]),
        actions=actions,
        rewards=rewards,
        terminations=terminals,
        truncations=last & ~terminals,
    )


def _check_metadata(folder: Path) -> None:
    """Check that the metadata hold the spaces.

    Otherwise the package would import the environment that the file names, to read its
    spaces.
    """
    try:
        if not (folder / _METADATA).is_file():  # Opening a pipe would wait.
            raise OSError("no such file")
        metadata = json.loads((folder / _METADATA).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(
            f"{folder} is not a Minari data set: {_METADATA} cannot be read ({error}); "
            "check the path."
        ) from error
    for name in ("observation_space", "action_space"):
        if not isinstance(metadata, dict) or not isinstance(metadata.get(name), str):
            raise SettingsError(
                f"{folder / _METADATA} lacks {name}; write the data set again with a "
                "recent version of minari."
            )


def _read(
    episode: Any,
    obs_keys: Sequence[str] | None,
    space: Any,
    rewarded: bool,
    source: str,
) -> Episodes:
    actions = np.asarray(episode.actions)
    if actions.dtype.kind not in "fiu" or actions.ndim != 2:
        raise SettingsError(
            f"{source}: actions {actions.dtype} {actions.shape} must be numbers "
            "[T, Da]; discrete or structured actions cannot be cloned."
        )
    _check_range(actions, space, source)
    parts = _chosen(_entries(episode.observations), obs_keys, source)
    for name, part in parts.items():
        _check_numbers(part, name, source)
        if len(part) != len(actions) + 1:
            raise SettingsError(
                f"{source}: {name} has {len(part)} rows; {len(actions)} actions need "
                f"{len(actions) + 1}; write the data set again."
            )
    rewards, ends = np.asarray(episode.rewards), np.asarray(episode.terminations)
    _check_numbers(rewards, "rewards", source)
    _check_numbers(ends, "terminations", source)
    return one_episode(
        {name: part[:-1] for name, part in parts.items()},
        actions,
        source,
        rewards=rewards if rewarded else None,
        ended=bool(ends[-1:].any()),
    )


def _check_numbers(values: np.ndarray, name: str, source: str) -> None:
    if values.dtype.kind not in "fiub" or values.ndim == 0:
        raise SettingsError(
            f"{source}: {name} {values.dtype} {values.shape} must be numbers with a "
            "row for each step; download the data set again."
        )


def _entries(observations: Any, prefix: str = "") -> dict[str, np.ndarray]:
    if not isinstance(observations, Mapping):
        return {prefix.removesuffix("/"): np.asarray(observations)}
    entries: dict[str, np.ndarray] = {}
    for name, value in observations.items():
        entries |= _entries(value, f"{prefix}{name}/")
    return entries


def _chosen(
    entries: dict[str, np.ndarray], obs_keys: Sequence[str] | None, source: str
) -> dict[str, np.ndarray]:
    if obs_keys is None and len(entries) > 1:
        raise SettingsError(
            f"{source} has several observations; choose those of the state with "
            f"obs_keys, among {', '.join(entries)}."
        )
    if obs_keys is not None:
        for key in obs_keys:
            require_key(key, list(entries), "observation", source)
        return {key: entries[key] for key in obs_keys}
    return {name or "observations": part for name, part in entries.items()}


def _check_range(actions: np.ndarray, space: Any, source: str) -> None:
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if low is None or high is None or np.shape(low) != actions.shape[1:]:
        return
    # Recorders round, so tolerate a thousandth of the range.
    with np.errstate(invalid="ignore"):
        slack = np.nan_to_num(1e-3 * (high - low), nan=0.0, posinf=0.0)
    rows = np.flatnonzero(((actions < low - slack) | (actions > high + slack)).any(1))
    if len(rows):
        raise SettingsError(
            f"{source}: actions reach {np.abs(actions[rows]).max():.4g}, outside the "
            f"declared {space}, in {len(rows)} of {len(actions)} rows, first "
            f"{rows[:5].tolist()}; clip them, or drop the episode."
        )

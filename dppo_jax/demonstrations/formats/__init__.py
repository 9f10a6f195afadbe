"""Read and write demonstrations; the format of a file is detected by its content."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from dppo_jax.demonstrations.dataset import Episodes, normalize_episodes
from dppo_jax.demonstrations.formats.d4rl import load_d4rl, save_d4rl
from dppo_jax.demonstrations.formats.dppo_npz import (
    DATA_FILE,
    load_dppo_npz,
    save_dppo_npz,
)
from dppo_jax.demonstrations.formats.lerobot import load_lerobot
from dppo_jax.demonstrations.formats.minari import (
    load_minari,
    minari_folder,
    save_minari,
)
from dppo_jax.demonstrations.formats.robomimic import load_robomimic
from dppo_jax.demonstrations.formats.tables import member, names, open_hdf5
from dppo_jax.errors import SettingsError
from dppo_jax.normalize import OBS_LIMIT

# Tolerance of actions beyond [-1, 1]: rounding errors of the normalisation are far
# smaller, actions that were not normalised usually far larger.
_ACTION_SLACK = 1e-3


class Format(NamedTuple):
    """A format of demonstrations.

    looks: a description of its files or folders, for messages.
    load: (path, max_episodes, **options) -> Episodes.
    options: the keyword arguments of `load`, among obs_keys, filter_key and task.
    save: (path, episodes) writes to a path that does not exist; None: the format can
        only be read.
    """

    looks: str
    load: Callable[..., Episodes]
    options: tuple[str, ...] = ()
    save: Callable | None = None


def _load_checked_npz(path: Path, max_episodes: int | None) -> Episodes:
    episodes = load_dppo_npz(path, max_episodes)
    if episodes.normalizer is None:
        beside = path if path.is_dir() else path.parent
        raise SettingsError(
            f"{beside} holds no normalization.npz, which a policy needs to run in the "
            f"simulator; put it into the folder of {DATA_FILE}."
        )
    furthest = np.abs(episodes.observations["state"]).max(axis=1)
    rows = np.flatnonzero(furthest > OBS_LIMIT)
    if len(rows):
        raise SettingsError(
            f"{path}: states reach {furthest.max():.4g} in {len(rows)} of "
            f"{len(furthest)} rows, first {rows[:5].tolist()}, but those of the format "
            "are normalised to [-1, 1]; write them with dppo_jax.save_dppo_npz."
        )
    largest = np.abs(episodes.actions).max(axis=1)
    rows = np.flatnonzero(largest > 1 + _ACTION_SLACK)
    if len(rows):
        raise SettingsError(
            f"{path}: actions reach {largest.max():.4g}, outside the [-1, 1] of the "
            f"format, in {len(rows)} of {len(largest)} rows, first "
            f"{rows[:5].tolist()}; write them with dppo_jax.save_dppo_npz."
        )
    return episodes


FORMATS = {
    "dppo_npz": Format(
        f"a folder with {DATA_FILE}, or an .npz file",
        _load_checked_npz,
        save=save_dppo_npz,
    ),
    "d4rl": Format(
        "an HDF5 file with observations and actions", load_d4rl, save=save_d4rl
    ),
    "minari": Format(
        "a folder with data/metadata.json", load_minari, ("obs_keys",), save_minari
    ),
    "robomimic": Format(
        "an HDF5 file with data/demo_*",
        load_robomimic,
        ("obs_keys", "filter_key", "task"),
    ),
    "lerobot": Format(
        "a folder with meta/info.json", load_lerobot, ("obs_keys", "filter_key")
    ),
}


def load_demonstrations(
    path: str | os.PathLike,
    *,
    format: str | None = None,
    max_episodes: int | None = None,
    obs_keys: Sequence[str] | None = None,
    filter_key: str | None = None,
    task: str | None = None,
) -> Episodes:
    """Read demonstrations of any known format and normalise them.

    Args:
        path: file or folder.
        format: a key of `FORMATS`; None: detect it.
        max_episodes: read only this many episodes, from the first; None: all.
        obs_keys: entries of an observation to concatenate to the state, for formats
            with several entries.
        filter_key: name of the subset to read, for formats with named subsets.
        task: task of this project whose observations to make of robosuite's.

    Returns:
        Episodes normalised to [-1, 1], with their bounds. If the format stores task
        units, the bounds are fitted to the episodes that were read.

    Raises:
        SettingsError: a missing or invalid file; the message names it and the cure.
    """
    path = Path(path)
    name = _known(format) if format is not None else detect_format(path)
    if not path.exists():
        raise SettingsError(f"{path} does not exist; check the path.")
    chosen = {"obs_keys": obs_keys, "filter_key": filter_key, "task": task}
    given = {option: value for option, value in chosen.items() if value is not None}
    for option, value in given.items():
        if option not in FORMATS[name].options:
            raise SettingsError(
                f"{path} is of the format {name}, where {option}={value!r} has no "
                "meaning; leave it out."
            )
    return normalize_episodes(FORMATS[name].load(path, max_episodes, **given))


def save_demonstrations(
    path: str | os.PathLike, episodes: Episodes, *, format: str | None = None
) -> str:
    """Write episodes to a path that does not exist, atomically.

    Args:
        path: file or folder to write.
        episodes: normalised or in task units.
        format: a key of `FORMATS` that can be written; None: `d4rl` for a name that
            ends in .hdf5 or .h5, and `dppo_npz` for every other name.

    Returns:
        The format written.

    Raises:
        SettingsError: the path exists, the format is unknown or cannot be written, or
            the format cannot store the episodes.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    name = _known(format or ("d4rl" if suffix in (".hdf5", ".h5") else "dppo_npz"))
    save = FORMATS[name].save
    if save is None:
        writable = [known for known, entry in FORMATS.items() if entry.save is not None]
        raise SettingsError(
            f"format={name!r} can only be read; write one of {', '.join(writable)}."
        )
    if name != "d4rl" and suffix in (".npz", ".hdf5", ".h5"):
        raise SettingsError(
            f"{path}: {name} is a folder; give a name without {suffix}."
        )
    if path.exists():
        raise SettingsError(f"{path} exists; remove it, or give another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, suffix=".tmp") as folder:
        save(Path(folder) / path.name, episodes)
        os.rename(Path(folder) / path.name, path)
    return name


def detect_format(path: str | os.PathLike) -> str:
    """Detect the format of a file or folder by its content, as a key of `FORMATS`.

    Raises:
        SettingsError: the path does not exist, or has no known format.
    """
    path = Path(path)
    if not path.exists():
        raise SettingsError(f"{path} does not exist; check the path.")
    if path.is_dir():
        if (path / DATA_FILE).is_file():
            return "dppo_npz"
        if (path / "meta" / "info.json").is_file():
            return "lerobot"
        if (minari_folder(path) / "metadata.json").is_file():
            return "minari"
        content = sorted(entry.name for entry in path.iterdir())
    elif not path.is_file():  # Opening a pipe would wait for a writer.
        raise SettingsError(f"{path} is no file; check the path.")
    elif h5py.is_hdf5(path):
        with open_hdf5(path) as file:
            content = names(file, str(path))
            if isinstance(member(file, "data", str(path)), h5py.Group):
                return "robomimic"
        if "observations" in content or "actions" in content:
            return "d4rl"
    else:
        with open(path, "rb") as opened:
            # An .npz file is a zip file, and all zip files start with these bytes.
            if opened.read(2) == b"PK":
                return "dppo_npz"
        content = []
    known = "; ".join(f"{name}: {entry.looks}" for name, entry in FORMATS.items())
    shown = ", ".join(content[:5]) + (", ..." if len(content) > 5 else "")
    raise SettingsError(
        f"{path}{f' (with {shown})' if shown else ''} has no known format; give one of "
        f"{known}."
    )


def _known(name: str) -> str:
    if name not in FORMATS:
        raise SettingsError(
            f"format={name!r} is unknown; use one of {', '.join(FORMATS)}."
        )
    return name

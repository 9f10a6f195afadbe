"""The DPPO data format: a folder with `train.npz` and `normalization.npz`.

`train.npz` holds concatenated episodes: `states [N, Do]`, `actions [N, Da]`, both
normalised to [-1, 1], `traj_lengths [E]`, and optionally `images [N, C, H, W]` uint8,
`rewards [N]` and `terminals [N]`. `normalization.npz` holds the bounds.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

from dppo_jax.demonstrations.dataset import (
    Episodes,
    check_episodes,
    normalize_episodes,
)
from dppo_jax.demonstrations.formats.tables import as_float32
from dppo_jax.errors import SettingsError
from dppo_jax.normalize import (
    Normalizer,
    load_normalizer,
    read_npz,
    save_normalizer,
)

DATA_FILE = "train.npz"
NORMALIZER_FILE = "normalization.npz"


def load_dppo_npz(
    path: str | os.PathLike, max_episodes: int | None = None, *, images: bool = True
) -> Episodes:
    """Read a data set in the DPPO format.

    Args:
        path: a folder that holds `train.npz`, or an `.npz` file. Bounds are read from
            the `normalization.npz` in the same folder, if there is one.
        max_episodes: read only this many episodes, from the first; None: all.
        images: whether to read images, if there are any.

    Returns:
        Normalised episodes; images are [N, H, W, C].

    Raises:
        SettingsError: a file that is missing or unreadable, a missing key, object
            arrays, episode lengths with a wrong sum, NaN or infinite values, no steps,
            bounds of another size.
    """
    path = _data_path(Path(path))
    if max_episodes is not None and max_episodes < 1:
        raise SettingsError(f"max_episodes={max_episodes} must be at least 1, or None.")
    optional = ("rewards", "terminals") + (("images",) if images else ())
    arrays = read_npz(path, ("states", "actions", "traj_lengths"), optional)
    if "images" in arrays and arrays["images"].dtype != np.uint8:
        raise SettingsError(
            f"{path}: images have type {arrays['images'].dtype}; convert them to uint8."
        )
    episodes = _to_episodes(arrays)
    check_episodes(episodes, str(path))
    normalizer_path = path.parent / NORMALIZER_FILE
    if normalizer_path.is_file():
        normalizer = load_normalizer(normalizer_path)
        _check_sizes(episodes, normalizer, f"{normalizer_path} does not suit {path}")
        episodes = episodes._replace(normalizer=normalizer)
    return _first_episodes(episodes, max_episodes)


def save_dppo_npz(
    folder: str | os.PathLike, episodes: Episodes, *, overwrite: bool = False
) -> Normalizer:
    """Write episodes as `train.npz` and `normalization.npz` into `folder`.

    Episodes without a normaliser are in task units; they are normalised by bounds that
    are fitted to them. Episodes with a normaliser must already be normalised by it. If
    the writer is interrupted, readers find no data set instead of half of one.

    Returns:
        The normaliser that was written.

    Raises:
        SettingsError: a data set exists and `overwrite` is False, or the episodes are
            inconsistent.
    """
    folder = Path(folder)
    target = folder / DATA_FILE
    taken = [p for p in (target, folder / NORMALIZER_FILE) if p.exists()]
    if taken and not overwrite:
        raise SettingsError(f"{taken[0]} exists; pass overwrite=True to replace it.")
    check_episodes(episodes, "episodes")
    episodes = normalize_episodes(episodes)
    normalizer = episodes.normalizer
    assert normalizer is not None
    _check_sizes(episodes, normalizer, "the normalizer does not suit the episodes")
    arrays: dict[str, np.ndarray | None] = {
        "states": np.asarray(episodes.observations["state"], np.float32),
        "actions": np.asarray(episodes.actions, np.float32),
        "traj_lengths": np.asarray(episodes.episode_lengths, np.int64),
        "rewards": episodes.rewards,
        "terminals": episodes.terminals,
    }
    if "rgb" in episodes.observations:
        arrays["images"] = np.moveaxis(episodes.observations["rgb"], -1, 1)
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            present = {k: v for k, v in arrays.items() if v is not None}
            np.savez_compressed(file, allow_pickle=False, **present)
        # Remove old data first and write new data last, so that data and bounds always
        # belong together.
        target.unlink(missing_ok=True)
        save_normalizer(folder / NORMALIZER_FILE, normalizer)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return normalizer


def _data_path(path: Path) -> Path:
    if path.is_dir():
        if not (path / DATA_FILE).is_file():
            raise SettingsError(
                f"{path} holds no {DATA_FILE}; give a folder that holds it."
            )
        return path / DATA_FILE
    if path.suffix != ".npz":
        raise SettingsError(
            f"{path} is neither a folder nor an .npz file; give a folder that holds "
            f"{DATA_FILE}, or such a file."
        )
    return path


def _to_episodes(arrays: dict[str, np.ndarray]) -> Episodes:
    observations = {"state": as_float32(arrays["states"])}
    if "images" in arrays:
        images = arrays["images"]
        channels_last = np.moveaxis(images, 1, -1) if images.ndim == 4 else images
        observations["rgb"] = np.ascontiguousarray(channels_last)
    rewards, terminals = arrays.get("rewards"), arrays.get("terminals")
    lengths = arrays["traj_lengths"]
    if lengths.dtype.kind in "iu":  # Sums of unsigned ones are no indices.
        lengths = lengths.astype(np.int64)
    return Episodes(
        observations=observations,
        actions=as_float32(arrays["actions"]),
        episode_lengths=lengths,
        rewards=None if rewards is None else as_float32(rewards),
        terminals=None if terminals is None else terminals.astype(bool),
    )


def _first_episodes(episodes: Episodes, max_episodes: int | None) -> Episodes:
    lengths = episodes.episode_lengths[:max_episodes]
    steps = int(lengths.sum())
    rewards, terminals = episodes.rewards, episodes.terminals
    return episodes._replace(
        observations={k: v[:steps] for k, v in episodes.observations.items()},
        actions=episodes.actions[:steps],
        episode_lengths=lengths,
        rewards=None if rewards is None else rewards[:steps],
        terminals=None if terminals is None else terminals[:steps],
    )


def _check_sizes(episodes: Episodes, normalizer: Normalizer, problem: str) -> None:
    sizes = (episodes.observations["state"].shape[1], episodes.actions.shape[1])
    bounds = (len(normalizer.obs_min), len(normalizer.action_min))
    if sizes != bounds:
        raise SettingsError(
            f"{problem}: the bounds are for {bounds[0]} observation and {bounds[1]} "
            f"action entries, the data has {sizes[0]} and {sizes[1]}."
        )

"""What readers share: HDF5 files, packages of extras, an episode from its parts."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np

from dppo_jax.demonstrations.dataset import Episodes, check_episodes
from dppo_jax.errors import SettingsError


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """The file, for reading.

    Raises:
        SettingsError: it is missing, no HDF5 file, or damaged, also where only reading
            finds that out.
    """
    if path.is_dir():
        raise SettingsError(
            f"{path} is a folder, not an HDF5 file; name the file in it."
        )
    if not path.exists():
        raise SettingsError(f"{path} does not exist; check the path.")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise SettingsError(
            f"{path} is not a readable HDF5 file ({error}); fetch or write it again."
        ) from error


def read_rows(
    group: h5py.Group, name: str, source: str, stop: int | None = None
) -> np.ndarray:
    """Rows [:stop] of a table of numbers; the rest stays on disk.

    Raises:
        SettingsError: the table is missing, holds no numbers, or has no rows.
    """
    table = group.get(name)
    if not isinstance(table, h5py.Dataset):
        raise SettingsError(
            f"{source} lacks {name}; it holds {', '.join(group) or 'nothing'}."
        )
    if table.ndim == 0 or table.dtype.kind not in "fiub":
        raise SettingsError(
            f"{source}: {name} has type {table.dtype} and shape {table.shape}; it must "
            "hold numbers, one row per step."
        )
    return table[:stop]


def read_optional_rows(
    group: h5py.Group, name: str, source: str, stop: int | None = None
) -> np.ndarray | None:
    """As `read_rows`, but None where there is no such table."""
    return read_rows(group, name, source, stop) if name in group else None


def one_episode(
    parts: Mapping[str, np.ndarray],
    actions: np.ndarray,
    source: str,
    *,
    rewards: np.ndarray | None = None,
    ended: bool | None = None,
) -> Episodes:
    """An episode in task units from parts of its observation.

    Args:
        parts: vectors [T, D] or [T], which become the state side by side, and images
            [T, H, W, C] uint8, whose channels are stacked; in this order.
        actions: [T, Da]
        source: what to call the episode in a message.
        rewards: [T] or [T, 1]
        ended: whether the task ended with the last step.

    Raises:
        SettingsError: a part that is neither vector nor image, images alone, images of
            different sizes, and what `check_episodes` refuses.
    """
    steps = len(actions)
    if steps == 0:
        raise SettingsError(f"{source} is empty; drop this episode.")
    vectors, images = [], []
    for name, part in parts.items():
        if len(part) != steps:
            raise SettingsError(
                f"{source}: {name} has {len(part)} rows, but actions has {steps}; "
                "write the episode again, or drop it."
            )
        if part.ndim == 4 and part.dtype == np.uint8:
            images.append(part)
        elif part.ndim in (1, 2):
            table = part if part.ndim == 2 else part[:, None]
            vectors.append(table.astype(np.float32))
        else:
            raise SettingsError(
                f"{source}: {name} {part.dtype} {part.shape} is neither a table of "
                "vectors nor of uint8 images [T, H, W, C]; leave it out of obs_keys."
            )
    if not vectors or len({image.shape[1:3] for image in images}) > 1:
        raise SettingsError(
            f"{source}: {', '.join(parts)} must hold a vector at least, and images "
            "of one size; choose others with obs_keys."
        )
    observations = {"state": np.concatenate(vectors, axis=1)}
    if images:
        observations["rgb"] = np.concatenate(images, axis=-1)
    terminals = None if ended is None else np.zeros(steps, bool)
    if terminals is not None:
        terminals[-1] = ended
    episode = Episodes(
        observations=observations,
        actions=actions.astype(np.float32),
        episode_lengths=np.array([steps]),
        rewards=None if rewards is None else flat(rewards, "rewards", source),
        terminals=terminals,
    )
    check_episodes(episode, source)
    return episode


def flat(column: np.ndarray, name: str, source: str) -> np.ndarray:
    """A column [N] or [N, 1] as [N] float32."""
    if column.shape not in ((len(column),), (len(column), 1)):
        raise SettingsError(
            f"{source}: {name} {column.shape} must have one entry a step."
        )
    return column.reshape(-1).astype(np.float32)


def check_max_episodes(max_episodes: int | None) -> None:
    """Raises SettingsError for a number of episodes below one."""
    if max_episodes is not None and max_episodes < 1:
        raise SettingsError(f"max_episodes={max_episodes} must be at least 1, or None.")


def require_key(key: str, known: Sequence[str], kind: str, source: str) -> None:
    """Raises SettingsError where `key` is not one of the `known` ones."""
    if key not in known:
        raise SettingsError(
            f"{source} has no {kind} {key!r}; it has {', '.join(known) or 'none'}."
        )


def import_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """A package that only some formats need.

    Raises:
        SettingsError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SettingsError(
            f"{purpose} needs the package {error.name or module}, which is not "
            f"installed; run: pip install 'dppo_jax[{extra}]'"
        ) from error

"""Functions that readers share: HDF5 tables, optional packages, making an episode."""

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np

from dppo_jax.demonstrations.dataset import Episodes, check_episodes
from dppo_jax.errors import SettingsError
from dppo_jax.expansion import check_expansion


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading.

    Raises:
        SettingsError: the file is missing, damaged or not an HDF5 file, even if this is
            found only while reading.
    """
    if path.is_dir():
        raise SettingsError(
            f"{path} is a folder, not an HDF5 file; name the file in it."
        )
    if not path.is_file():  # Opening a pipe would wait for a writer.
        raise SettingsError(f"{path} does not exist, or is no file; check the path.")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except SettingsError:
        raise
    except (OSError, RuntimeError, KeyError) as error:
        raise SettingsError(
            f"{path} is not a readable HDF5 file ({error}); download or write it "
            "again."
        ) from error


def member(group: h5py.Group, name: str, source: str) -> Any:
    """What a group holds under a name; None: nothing.

    Raises:
        SettingsError: it is in another file, or the link to it is damaged.
    """
    try:
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise SettingsError(
                f"{source}: {name} is a link to {link.filename}; data must be in one "
                "file, so copy them."
            )
        found = group.get(name)
        is_outside = isinstance(found, h5py.Dataset) and (
            found.is_virtual or found.external is not None
        )
    except SettingsError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise SettingsError(f"{source}: {name} is damaged ({error}).") from error
    if is_outside:
        raise SettingsError(
            f"{source}: {name} has its numbers in another file; data must be in one "
            "file, so copy them."
        )
    return found


def names(group: h5py.Group, source: str) -> list[str]:
    """The names of what a group holds.

    Raises:
        SettingsError: one of them is no text in UTF-8, which h5py returns as bytes.
    """
    found = list(group)
    for name in found:
        if not isinstance(name, str):
            raise SettingsError(
                f"{source} holds the name {name!r}, which is not text in UTF-8; write "
                "the data again."
            )
    return found


def check_tables(group: h5py.Group, source: str) -> None:
    """Refuse tables that lie in another file, or expand too far, anywhere in a group.

    For packages that read files without such checks.
    """
    seen, groups = set(), [(source, group)]
    while groups:
        where, group = groups.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:  # A link leads back.
            continue
        seen.add(address)
        for name in names(group, where):
            found = member(group, name, where)
            if isinstance(found, h5py.Group):
                groups.append((f"{where}/{name}", found))
            elif isinstance(found, h5py.Dataset) and found.shape is not None:
                try:
                    size = math.prod(found.shape) * found.dtype.itemsize
                except TypeError as error:  # A type that h5py does not know.
                    raise SettingsError(
                        f"{where}: {name} is damaged ({error})."
                    ) from error
                stored = found.id.get_storage_size()
                check_expansion(size, stored, f"{where}: {name}")


def read_rows(
    group: h5py.Group, name: str, source: str, stop: int | None = None
) -> np.ndarray:
    """Read only rows [:stop] of a table of numbers.

    Raises:
        SettingsError: the table is missing, holds no numbers, or is a scalar.
    """
    table = member(group, name, source)
    if not isinstance(table, h5py.Dataset):
        raise SettingsError(
            f"{source} lacks {name}; it holds "
            f"{', '.join(names(group, source)) or 'nothing'}."
        )
    try:
        kind, shape = table.dtype.kind, table.shape
        if not shape or kind not in "fiub":
            raise SettingsError(
                f"{source}: {name} has type {table.dtype} and shape {shape}; it must "
                "hold numbers, one row per step."
            )
        rows = len(table) if stop is None else min(stop, len(table))
        size = rows * math.prod(shape[1:]) * table.dtype.itemsize
        # What was never written takes no space in the file.
        check_expansion(size, table.id.get_storage_size(), f"{source}: {name}")
        return table[:stop]
    except SettingsError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise SettingsError(
            f"{source}: {name} cannot be read ({error}); write the data again."
        ) from error


def read_optional_rows(
    group: h5py.Group, name: str, source: str, stop: int | None = None
) -> np.ndarray | None:
    """As `read_rows`, but return None if the table is missing."""
    return read_rows(group, name, source, stop) if name in group else None


def one_episode(
    parts: Mapping[str, np.ndarray],
    actions: np.ndarray,
    source: str,
    *,
    rewards: np.ndarray | None = None,
    ended: bool | None = None,
) -> Episodes:
    """Make an episode in task units from parts of its observation.

    Args:
        parts: vectors [T, D] or [T], which are concatenated to the state, and images
            [T, H, W, C] uint8, whose channels are concatenated, in the given order.
        actions: [T, Da].
        source: name of the episode in messages.
        rewards: [T] or [T, 1].
        ended: whether the task ended with the last step; None: unknown.

    Raises:
        SettingsError: a part that is neither vectors nor images, no vectors, images of
            different sizes, or an error of `check_episodes`.
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
            vectors.append(as_float32(table))
        else:
            raise SettingsError(
                f"{source}: {name} {part.dtype} {part.shape} is neither a table of "
                "vectors nor of uint8 images [T, H, W, C]; leave it out of obs_keys."
            )
    if not vectors or len({image.shape[1:3] for image in images}) > 1:
        raise SettingsError(
            f"{source}: {', '.join(parts)} must include at least one vector, and "
            "images of one size; choose others with obs_keys."
        )
    observations = {"state": np.concatenate(vectors, axis=1)}
    if images:
        observations["rgb"] = np.concatenate(images, axis=-1)
    terminals = None if ended is None else np.zeros(steps, bool)
    if terminals is not None:
        terminals[-1] = ended
    episode = Episodes(
        observations=observations,
        actions=as_float32(actions),
        episode_lengths=np.array([steps]),
        rewards=None if rewards is None else flat(rewards, "rewards", source),
        terminals=terminals,
    )
    check_episodes(episode, source)
    return episode


def as_float32(table: np.ndarray) -> np.ndarray:
    """Convert numbers; larger ones than float32 holds become infinite, in silence.

    `check_episodes` refuses these.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return table.astype(np.float32)


def flat(column: np.ndarray, name: str, source: str) -> np.ndarray:
    """Convert a column [N] or [N, 1] to [N] float32."""
    if column.shape not in ((len(column),), (len(column), 1)):
        raise SettingsError(
            f"{source}: {name} {column.shape} must have one entry per step."
        )
    return as_float32(column.reshape(-1))


def check_max_episodes(max_episodes: int | None) -> None:
    """Raise SettingsError for a number of episodes below one."""
    if max_episodes is not None and max_episodes < 1:
        raise SettingsError(f"max_episodes={max_episodes} must be at least 1, or None.")


def require_key(key: str, known: Sequence[str], kind: str, source: str) -> None:
    """Raise SettingsError if `key` is not in `known`."""
    if key not in known:
        raise SettingsError(
            f"{source} has no {kind} {key!r}; it has {', '.join(known) or 'none'}."
        )


def import_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Import a package that only some formats need.

    Raises:
        SettingsError: it is not installed; the message has the command to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SettingsError(
            f"{purpose} needs the package {error.name or module}, which is not "
            f"installed; run: pip install 'dppo_jax[{extra}]'"
        ) from error

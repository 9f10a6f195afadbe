"""Bounds of a data set, and the maps between task units and [-1, 1].

A policy is trained on normalised observations and actions, so its bounds are saved with
it. The constants are those of the published DPPO data, so its files and the policies
trained on them can be used.
"""

import contextlib
import math
import os
import tempfile
import tokenize
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from dppo_jax.errors import SettingsError
from dppo_jax.expansion import check_expansion
from dppo_jax.types import Array
from dppo_jax.zip_archive import UNREADABLE, open_entry

Rows = Array | np.ndarray

# A constant column has no range; this keeps its normalised value finite (-1).
EPSILON = 1e-6
# In task units: a column of observations with a smaller range is treated as constant.
# There a deviation of 1 mm would be 20 in normalised units, or 1999 at range 0.
NARROW = 1e-4
# In normalised units: policies see observations clipped to +- this, and constant
# columns clipped to [-1, 1].
OBS_LIMIT = 10.0

# Errors of damaged headers of arrays, which are Python literals.
_MALFORMED = (ValueError, KeyError, TypeError, SyntaxError, tokenize.TokenError)
_NPY_HEADERS = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


class Normalizer(NamedTuple):
    """Bounds in the units of the task.

    obs_min, obs_max: [Do] float32.
    action_min, action_max: [Da] float32.
    """

    obs_min: Rows
    obs_max: Rows
    action_min: Rows
    action_max: Rows


def normalize_obs(normalizer: Normalizer, obs: Rows) -> Array:
    """Observations [..., Do] in task units -> [-1, 1] inside the bounds."""
    return _normalize(obs, normalizer.obs_min, normalizer.obs_max)


def unnormalize_obs(normalizer: Normalizer, obs: Rows) -> Array:
    """The exact inverse of `normalize_obs`, [..., Do]."""
    return _unnormalize(obs, normalizer.obs_min, normalizer.obs_max)


def policy_obs(normalizer: Normalizer, obs: Rows) -> Array:
    """Normalise and clip observations [..., Do] in task units for a policy.

    The values of `normalize_obs` are clipped to +-`OBS_LIMIT`, and to [-1, 1] in
    `constant_columns`, because a network has no training data far outside its bounds.
    """
    low, high = normalizer.obs_min, normalizer.obs_max
    limit = 1.0 + (OBS_LIMIT - 1.0) * (high - low >= NARROW)
    return _normalize(obs, low, high).clip(-limit, limit)


def constant_columns(normalizer: Normalizer) -> list[int]:
    """Indices of observation columns whose range is below `NARROW`."""
    width = np.asarray(normalizer.obs_max) - np.asarray(normalizer.obs_min)
    return np.flatnonzero(width < NARROW).tolist()


def normalize_action(normalizer: Normalizer, action: Rows) -> Array:
    """Actions [..., Da] in task units -> [-1, 1] inside the bounds."""
    return _normalize(action, normalizer.action_min, normalizer.action_max)


def unnormalize_action(normalizer: Normalizer, action: Rows) -> Array:
    """Actions [..., Da] in [-1, 1] -> task units; -1 and 1 give the exact bounds.

    Unlike `normalize_action` it does not add `EPSILON` to the range, so that a policy
    reaches exactly the bounds. A round trip is off by at most 1e-6 task units.
    """
    low: Any = normalizer.action_min
    return (action + 1) / 2 * (normalizer.action_max - low) + low


def fit_normalizer(observations: Rows, actions: Rows) -> Normalizer:
    """Compute the bounds of observations [N, Do] and actions [N, Da], in task units.

    Raises:
        SettingsError: no rows, unequal numbers of rows, NaN or infinite values.
    """
    named = {"observations": np.asarray(observations), "actions": np.asarray(actions)}
    for name, rows in named.items():
        if rows.ndim != 2 or len(rows) == 0:
            raise SettingsError(
                f"{name} {rows.shape} must be a non-empty table [N, D]."
            )
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise SettingsError(
                f"{name} hold NaN or infinite values in {len(bad)} rows, the first of "
                f"which are {bad[:5].tolist()}; remove those episodes."
            )
    if len(observations) != len(actions):
        raise SettingsError(
            f"{len(observations)} observations and {len(actions)} actions are not the "
            "same number; give one row of each per step."
        )
    return Normalizer(
        *(
            bound(rows, axis=0).astype(np.float32)
            for rows in named.values()
            for bound in (np.min, np.max)
        )
    )


def load_normalizer(path: str | os.PathLike) -> Normalizer:
    """Read a `normalization.npz` (or the one in the folder `path`).

    Raises:
        SettingsError: a missing file or key, or invalid bounds.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "normalization.npz"
    arrays = read_npz(path, Normalizer._fields)
    normalizer = Normalizer(*(arrays[key] for key in Normalizer._fields))
    _check_bounds(normalizer, str(path))
    return Normalizer(*(bound.astype(np.float32) for bound in normalizer))


def save_normalizer(path: str | os.PathLike, normalizer: Normalizer) -> None:
    """Write a `normalization.npz` at `path`, atomically.

    Raises:
        SettingsError: invalid bounds.
    """
    path = Path(path)
    normalizer = Normalizer(*(np.asarray(bound, np.float32) for bound in normalizer))
    _check_bounds(normalizer, "normalizer")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **normalizer._asdict())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_npz(
    path: Path, required: Sequence[str], optional: Sequence[str] | None = ()
) -> dict[str, np.ndarray]:
    """Read numeric arrays by name from an `.npz` file; nothing is unpickled.

    Args:
        required: names of arrays that must be there.
        optional: of others to read if they are there; None: all.

    Raises:
        SettingsError: a file that is missing or not readable, a missing key, an array
            that does not hold numbers, or one that would fill the memory.
    """
    if not path.is_file():
        raise SettingsError(f"{path} does not exist; check the path.")
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
        except (*UNREADABLE, ValueError, OverflowError) as error:
            with path.open("rb") as file:
                single = file.read(6) == npy.MAGIC_PREFIX
            reason = "it holds a single array" if single else error
            raise SettingsError(
                f"{path} is not a readable .npz file: {reason}."
            ) from error
        there = {
            info.filename.removesuffix(".npy"): info for info in archive.infolist()
        }
        missing = [key for key in required if key not in there]
        if missing:
            raise SettingsError(
                f"{path} lacks {', '.join(missing)}; it holds "
                f"{', '.join(there) or 'nothing'}."
            )
        others = [key for key in there if optional is None or key in optional]
        names = dict.fromkeys((*required, *others))
        return {
            key: _read_array(archive, there[key], f"{path}: {key}") for key in names
        }


def _read_array(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str
) -> np.ndarray:
    """Read one array, whose header must agree with the size of its entry.

    `numpy.load` would allocate whatever shape the header states.
    """
    try:
        with open_entry(archive, info) as entry, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of odd literals in a damaged header.
            version = npy.read_magic(entry)
            shape, _, dtype = _NPY_HEADERS[version](entry)
            header = entry.tell()
        if dtype.kind not in "fiub":
            found = "is an object array" if dtype.hasobject else f"has type {dtype}"
            raise SettingsError(f"{where} {found}; it must hold numbers.")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or header + size != info.file_size:
            raise ValueError(f"{dtype} {shape} is not what {info.file_size} bytes hold")
        check_expansion(size, info.compress_size, where)
        with open_entry(archive, info) as entry:
            return npy.read_array(entry, allow_pickle=False)
    except SettingsError:
        raise
    except (*UNREADABLE, *_MALFORMED) as error:
        raise SettingsError(
            f"{where} is damaged ({error or type(error).__name__}); write it as one "
            "plain array of numbers."
        ) from error


def _normalize(x: Any, low: Any, high: Any) -> Any:
    return 2 * ((x - low) / (high - low + EPSILON) - 0.5)


def _unnormalize(x: Any, low: Any, high: Any) -> Any:
    return (x / 2 + 0.5) * (high - low + EPSILON) + low


def _check_bounds(normalizer: Normalizer, source: str) -> None:
    for kind in ("obs", "action"):
        low = getattr(normalizer, f"{kind}_min")
        high = getattr(normalizer, f"{kind}_max")
        if low.ndim != 1 or low.shape != high.shape or low.size == 0:
            raise SettingsError(
                f"{source}: {kind}_min {low.shape} and {kind}_max {high.shape} must be "
                "two vectors of the same length."
            )
        bad = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)) | (low > high))
        if len(bad):
            i = bad[0]
            raise SettingsError(
                f"{source}: {kind}_min={low[i]} and {kind}_max={high[i]} at index {i} "
                "are invalid bounds; both must be finite and min <= max."
            )

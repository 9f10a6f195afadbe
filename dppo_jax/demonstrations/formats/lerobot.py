"""LeRobot v3 (and v2) data sets: a folder of Parquet files (`dppo_jax[lerobot]`).

`meta/info.json` describes the columns; `data/chunk-*/*.parquet` hold them, one row per
frame: `observation.state`, `action`, `episode_index`, and in simulated data
`next.reward` and `next.done`. Videos are not read.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dppo_jax.demonstrations.dataset import Episodes, check_episodes
from dppo_jax.demonstrations.formats.parquet_footer import read_footer
from dppo_jax.demonstrations.formats.tables import (
    as_float32,
    check_max_episodes,
    flat,
    import_extra,
    require_key,
)
from dppo_jax.errors import SettingsError
from dppo_jax.expansion import check_expansion

_STATE = "observation.state"
_ACTION = "action"
_EPISODE = "episode_index"
_FRAME = "frame_index"
_REWARD = "next.reward"
_DONE = "next.done"
_TRUNCATED = "next.truncated"
# Our own column: where a row was read.
_PLACE = ""
_BATCH_ROWS = 65536


def load_lerobot(
    folder: str | os.PathLike,
    max_episodes: int | None = None,
    *,
    obs_keys: Sequence[str] | None = None,
    filter_key: str | None = None,
) -> Episodes:
    """Read a LeRobot data set, in batches of rows and only the needed columns.

    Args:
        folder: the folder that holds `meta` and `data`.
        max_episodes: read only this many episodes, from the first; None: all.
        obs_keys: columns to concatenate to the state; None: `observation.state`.
        filter_key: read only this split of `meta/info.json`, for example "train".

    Returns:
        Episodes in task units, float32. The last frame of an episode is a terminal if
        `next.done` is set and `next.truncated`, if it exists, is not.

    Raises:
        SettingsError: missing or invalid data; the message names the file or folder.
    """
    folder = Path(folder)
    check_max_episodes(max_episodes)
    info = _read_info(folder)
    wanted = _split(info, filter_key, folder)
    keys = tuple(obs_keys or (_STATE,))
    for key in (*keys, _ACTION):
        require_key(key, list(info["features"]), "column", f"{folder}/meta/info.json")
        feature = info["features"][key]
        kind = feature.get("dtype", "") if isinstance(feature, dict) else ""
        if kind in ("video", "image", "string"):
            raise SettingsError(
                f"{folder}: {key} is of the kind {kind}, but a state consists of "
                "columns of numbers; choose others with obs_keys."
            )
    batches: list[dict[str, np.ndarray]] = []
    seen: set[int] = set()
    paths = _data_files(folder)
    for batch in _read_batches(folder, paths, (*keys, _ACTION)):
        if wanted is not None:
            begin, end = wanted
            rows = (batch[_EPISODE] >= begin) & (batch[_EPISODE] < end)
            batch = {name: column[rows] for name, column in batch.items()}
        batches.append(batch)
        seen.update(np.unique(batch[_EPISODE]).tolist())
        if max_episodes is not None and len(seen) > max_episodes:
            break
    if not seen:
        raise SettingsError(
            f"{folder} holds no episodes; check data/ and the filter_key."
        )
    common = set.intersection(*(set(batch) for batch in batches))
    for name in common:
        sizes = {batch[name].shape[1:] for batch in batches}
        if len(sizes) > 1:
            raise SettingsError(
                f"{folder}: {name} has vectors of {len(sizes)} different sizes; do not "
                "mix data of different tasks."
            )
    columns = {k: np.concatenate([batch[k] for batch in batches]) for k in common}
    _check_frames(columns, paths)
    return _to_episodes(columns, keys, max_episodes, folder)


def _check_frames(columns: dict[str, np.ndarray], paths: Sequence[Path]) -> None:
    """Refuse frames that are not numbered 0, 1, 2, ... within their episode.

    Otherwise frames that are reversed, or two episodes of the same number one after the
    other, would become one episode.
    """
    if _FRAME not in columns:
        return
    frame, episode = columns[_FRAME], columns[_EPISODE]
    follows = np.diff(episode, prepend=episode[0] - 1) == 0
    expected = np.where(follows, np.roll(frame, 1) + 1, 0)
    wrong = np.flatnonzero(frame != expected)
    if len(wrong):
        i = wrong[0]
        file, row = columns[_PLACE][i]
        raise SettingsError(
            f"{paths[file]}, row {row}: {_FRAME} of episode {episode[i]} is "
            f"{frame[i]}, but must be {expected[i]}; sort the frames, and give every "
            "episode a number of its own."
        )


def _to_episodes(
    columns: dict[str, np.ndarray],
    keys: Sequence[str],
    max_episodes: int | None,
    folder: Path,
) -> Episodes:
    number = columns[_EPISODE]
    begin = np.flatnonzero(np.diff(number, prepend=number[0] - 1))
    if len(np.unique(number[begin])) != len(begin):
        raise SettingsError(
            f"{folder}: the frames of an episode are not contiguous; sort the data "
            f"by {_EPISODE} and frame_index."
        )
    lengths = np.diff(np.append(begin, len(number)))[:max_episodes]
    steps = int(lengths.sum())
    terminals = None
    if _DONE in columns:
        terminals = np.zeros(steps, bool)
        ends = np.cumsum(lengths) - 1
        terminals[ends] = flat(columns[_DONE], _DONE, str(folder))[ends] > 0
        if _TRUNCATED in columns:
            truncated = flat(columns[_TRUNCATED], _TRUNCATED, str(folder))
            terminals[ends] &= truncated[ends] == 0
    rewards = None
    if _REWARD in columns:
        rewards = flat(columns[_REWARD], _REWARD, str(folder))[:steps]
    episodes = Episodes(
        observations={
            "state": np.concatenate([columns[key][:steps] for key in keys], axis=1)
        },
        actions=columns[_ACTION][:steps],
        episode_lengths=lengths,
        rewards=rewards,
        terminals=terminals,
    )
    check_episodes(episodes, str(folder))
    return episodes


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / "meta" / "info.json"
    if not path.is_file():
        raise SettingsError(
            f"{path} cannot be read (no such file); a LeRobot data set needs it."
        )
    try:
        info = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(
            f"{path} cannot be read ({error}); a LeRobot data set needs it."
        ) from error
    if not isinstance(info, dict) or not isinstance(info.get("features"), dict):
        raise SettingsError(
            f"{path} lacks features, the list of columns; download it again."
        )
    return info


def _split(
    info: dict[str, Any], filter_key: str | None, folder: Path
) -> tuple[int, int] | None:
    """First episode of a split, and the one after its last; None: all.

    It is written "begin:end".
    """
    if filter_key is None:
        return None
    splits = info.get("splits")
    splits = splits if isinstance(splits, dict) else {}
    require_key(filter_key, list(splits), "split", str(folder))
    bounds = re.fullmatch(r"(\d{1,18}):(\d{1,18})", str(splits[filter_key]))
    if not bounds:
        raise SettingsError(
            f"{folder}: the split {filter_key} is {splits[filter_key]!r}; it must be "
            "begin:end, for example 0:50."
        )
    return int(bounds[1]), int(bounds[2])


def _data_files(folder: Path) -> list[Path]:
    """The Parquet files in the order of the numbers in their names."""

    def numbers(path: Path) -> list[int]:
        inside = path.relative_to(folder).as_posix()
        return [int(digits) for digits in re.findall(r"\d+", inside)]

    paths = sorted(folder.glob("data/chunk-*/*.parquet"), key=numbers)
    if not paths:
        raise SettingsError(
            f"{folder} holds no data/chunk-*/*.parquet; download the data."
        )
    return paths


def _read_batches(
    folder: Path, paths: Sequence[Path], required: Sequence[str]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the columns as [N, D] float32, and as int64 the indices of episodes and
    frames [N], and `_PLACE`, the index of the file and the row in it [N, 2]."""
    purpose = f"{folder} is a LeRobot data set; reading it"
    arrow = import_extra("pyarrow", "lerobot", purpose)
    parquet = import_extra("pyarrow.parquet", "lerobot", purpose)
    for index, path in enumerate(paths):
        begin = 0
        if not path.is_file():  # Opening a pipe would wait for a writer.
            raise SettingsError(f"{path} is no file; copy the data again.")
        try:
            with parquet.ParquetFile(path) as file:
                there = file.schema_arrow.names
                for name in (*required, _EPISODE):
                    require_key(name, there, "column", str(path))
                unique = dict.fromkeys((*required, _REWARD, _DONE, _TRUNCATED))
                names = [name for name in unique if name in there]
                whole = [name for name in (_EPISODE, _FRAME) if name in there]
                _check_expansion(file.schema, [*names, *whole], path)
                for batch in file.iter_batches(_BATCH_ROWS, columns=[*names, *whole]):
                    if batch.num_rows:
                        columns = {n: _table(batch.column(n), n, path) for n in names}
                        columns |= {n: _whole(batch.column(n), n, path) for n in whole}
                        row = begin + np.arange(batch.num_rows)
                        place = np.stack([np.full_like(row, index), row], axis=1)
                        yield columns | {_PLACE: place}
                        begin += batch.num_rows
        except SettingsError:
            raise
        except (OSError, ValueError, OverflowError, arrow.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise SettingsError(
                f"{path} is not a readable Parquet file ({reason}); download it again."
            ) from error


def _check_expansion(schema: Any, names: Sequence[str], path: Path) -> None:
    """Refuse columns that expand too far, as runs of one value do.

    Args:
        schema: the Parquet schema; the columns in the footer have its order.
    """
    size, stored = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    paths = [schema.column(index).path for index in range(len(schema))]
    for group in read_footer(path):
        if len(group) != len(paths):
            raise ValueError("its footer is damaged")
        for column_path, column in zip(paths, group):
            # That of a list is followed by the names of its parts.
            for name in names:
                if f"{column_path}.".startswith(f"{name}."):
                    size[name] += 8 * max(column.num_values, column.num_rows)
                    stored[name] += column.stored
    whole = path.stat().st_size
    for name in names:
        check_expansion(size[name], min(stored[name], whole), f"{path}: {name}")


def _whole(column: Any, name: str, path: Path) -> np.ndarray:
    """Convert an Arrow column of whole numbers to [N] int64."""
    number = column.to_numpy(zero_copy_only=False)
    if column.null_count or number.dtype.kind not in "iu":
        raise SettingsError(
            f"{path}: {name} has type {column.type} and {column.null_count} missing "
            "values; it must hold whole numbers."
        )
    return number.astype(np.int64)


def _table(column: Any, name: str, path: Path) -> np.ndarray:
    """Convert an Arrow column of numbers or equally long lists to [N, D] float32."""
    rows = len(column)
    lists = hasattr(column, "flatten") and hasattr(column.type, "value_type")
    values = column.flatten() if lists else column
    flat = values.to_numpy(zero_copy_only=False)
    if lists and not hasattr(column.type, "list_size"):
        sizes = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    else:
        sizes = np.unique(len(flat) / rows)
    if column.null_count or len(sizes) != 1 or len(flat) != rows * sizes[0]:
        raise SettingsError(
            f"{path}: {name} has rows that are missing or of different sizes; every "
            "frame needs one vector of the same size."
        )
    if flat.dtype.kind not in "fiub":
        raise SettingsError(
            f"{path}: {name} has type {column.type}; it must hold numbers."
        )
    return as_float32(flat.reshape(rows, int(sizes[0])))

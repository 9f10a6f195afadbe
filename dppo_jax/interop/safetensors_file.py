"""Read and write `.safetensors` files, without the package of that name.

The format (github huggingface/safetensors, README, "Format"): eight bytes with the
length of the header, the header in JSON, and the bytes of all tensors, little-endian
and row by row. The header gives for every name the type, the shape, and the first and
the last offset of its bytes. These follow one another without gaps.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dppo_jax.errors import SettingsError

_DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "|b1"},
    "BF16": "<u2",  # The upper half of a float32.
    **{f"I{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
}
_MAX_HEADER = 100_000_000  # bytes, the limit of the format


def load_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read all tensors of a file; those of type BF16 become float32.

    Raises:
        SettingsError: no such file, or one that does not keep to the format: a damaged
            header, an unknown type, or bytes that are missing, left over or shared.
    """
    path = Path(path)
    if not path.is_file():
        raise SettingsError(f"{path} does not exist; check the path.")
    try:
        return _tensors(path.read_bytes())
    except _Damaged as error:
        raise SettingsError(
            f"{path} is no readable .safetensors file ({error}); copy it again."
        ) from None


class _Damaged(Exception):
    """A file does not keep to the format."""


def _tensors(content: bytes) -> dict[str, np.ndarray]:
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(_MAX_HEADER, len(content) - 8):
        raise _Damaged("it ends inside its header")
    try:
        header = json.loads(content[8 : 8 + length], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"its header is not valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise _Damaged("its header is no JSON object")
    header.pop("__metadata__", None)
    entries = {name: _entry(name, header[name]) for name in header}
    start, tensors = 0, {}
    in_order = sorted(entries.items(), key=lambda item: item[1]["data_offsets"])
    for name, entry in in_order:
        first, last = entry["data_offsets"]
        if first != start:
            raise _Damaged(f"{name} starts at byte {first}, not at {start}")
        if last > len(content) - 8 - length:
            raise _Damaged(f"it ends inside {name}")
        dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        if last - first != math.prod(shape) * dtype.itemsize:
            raise _Damaged(f"{name} {shape} has {last - first} bytes")
        array = np.frombuffer(
            content, dtype, math.prod(shape), offset=8 + length + first
        )
        try:
            array = array.reshape(shape)
        except ValueError as error:  # One axis of none makes all others possible.
            raise _Damaged(f"{name} {shape}: {error}") from None
        if entry["dtype"] == "BF16":
            array = (array[None].astype(np.uint32) << 16).view(np.float32)[0]
        tensors[name], start = array, last
    if start != len(content) - 8 - length:
        raise _Damaged(f"{len(content) - 8 - length - start} bytes belong to no tensor")
    return {name: tensors[name] for name in entries}


def _entry(name: str, entry: Any) -> Mapping[str, Any]:
    """Check the entry of a tensor in the header."""
    fields = ("dtype", "shape", "data_offsets")
    if not isinstance(entry, dict) or any(field not in entry for field in fields):
        raise _Damaged(f"{name} lacks one of {', '.join(fields)}")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
        raise _Damaged(f"{name} has the unknown type {entry['dtype']!r}")
    for field in ("shape", "data_offsets"):
        numbers = entry[field]
        if not isinstance(numbers, list) or any(
            type(number) is not int or number < 0 for number in numbers
        ):
            raise _Damaged(f"{name} has {field}={numbers!r}")
    if len(entry["data_offsets"]) != 2:
        raise _Damaged(f"{name} has data_offsets={entry['data_offsets']!r}")
    return entry


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def save_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray]
) -> None:
    """Write tensors to a new file, in the order of their names.

    Raises:
        SettingsError: a type that the format does not have.
    """
    names = {np.dtype(code): name for name, code in _DTYPES.items() if name != "BF16"}
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    start = 0
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        little = array.astype(array.dtype.newbyteorder("<"), order="C")
        if little.dtype not in names:
            raise SettingsError(
                f"{name} has type {array.dtype}, which .safetensors does not have."
            )
        content = little.tobytes()
        header[name] = {
            "dtype": names[little.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, start + len(content)],
        }
        parts.append(content)
        start += len(content)
    text = json.dumps(header, separators=(",", ":")).encode()
    # Readers may map the tensors into memory, which wants a multiple of eight bytes.
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))

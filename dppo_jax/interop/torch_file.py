"""Read and write files of `torch.save` without torch, and without running their code.

Such a file is a zip archive: `data.pkl` describes a tree of containers and tensors,
`data/<key>` are the raw bytes of the tensors. `data.pkl` is a pickle, which in general
may call any function that it names. Here a small interpreter implements only the
instructions that weights need, and accepts only the names of tensors and their types.
It never imports or calls what a file names.
"""

import math
import os
import pickletools
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dppo_jax.errors import SettingsError
from dppo_jax.expansion import check_expansion
from dppo_jax.zip_archive import UNREADABLE, open_entry

_STORAGES = {
    "torch FloatStorage": "f4",
    "torch DoubleStorage": "f8",
    "torch HalfStorage": "f2",
    "torch LongStorage": "i8",
    "torch IntStorage": "i4",
    "torch ShortStorage": "i2",
    "torch CharStorage": "i1",
    "torch ByteStorage": "u1",
    "torch BoolStorage": "b1",
}
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED_DICT = "collections OrderedDict"
_NAMES = {*_STORAGES, _TENSOR, _PARAMETER, _ORDERED_DICT}
# Accepted contents of `archive/version`; torch has written 3 since 1.6.
_VERSIONS = range(1, 11)
_BYTE_ORDERS: dict[str, Literal["<", ">"]] = {"little": "<", "big": ">"}
_SAVE_AGAIN = (
    "read it with torch.load and write what is needed, plain tensors in dictionaries, "
    "with torch.save"
)
# The errors that malformed instructions raise in the interpreter.
_MALFORMED = (
    *(ValueError, TypeError, LookupError, AttributeError),
    *(OverflowError, struct.error),
)


class _Name(NamedTuple):
    """A function or class that a file names, as "module name"."""

    name: str


def load_torch_file(path: str | os.PathLike) -> Any:
    """Read the tree in a file of `torch.save`: dictionaries, lists, numbers, tensors.

    Tensors are returned as numpy arrays, read-only views of their storages. Tensors
    that share a storage in the file share it here.

    Raises:
        SettingsError: a file that is missing, damaged, older than torch 1.6, or that
            holds other objects than containers, numbers, strings and tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise SettingsError(f"{path} does not exist; check the path.")
    try:
        with zipfile.ZipFile(path) as archive:
            return _load(archive, path)
    except UNREADABLE as error:
        raise SettingsError(
            f"{path} is not a readable file of torch.save ({error}); copy it again, "
            "or, if torch older than 1.6 wrote it, load and save it with a newer one."
        ) from error


def _load(archive: zipfile.ZipFile, path: Path) -> Any:
    folders = [
        name.removesuffix("/data.pkl")
        for name in archive.namelist()
        if name.endswith("/data.pkl")
    ]
    if len(folders) != 1:
        raise SettingsError(
            f"{path} is a zip file, but not one of torch.save; check the path."
        )
    records = {
        name.removeprefix(f"{folders[0]}/"): archive.getinfo(name)
        for name in archive.namelist()
    }

    def read(info: zipfile.ZipInfo) -> bytes:
        check_expansion(info.file_size, info.compress_size, f"{path}: {info.filename}")
        with open_entry(archive, info) as entry:
            return entry.read()

    def text(name: str, default: str) -> str:
        if name not in records:
            return default
        return read(records[name]).decode(errors="replace").strip()

    version, byte_order = text("version", "3"), text("byteorder", "little")
    if not version.isdecimal() or int(version) not in _VERSIONS:
        raise SettingsError(
            f"{path} has format version {version!r}, which is not known here; "
            f"{_SAVE_AGAIN} of 2.x."
        )
    if byte_order not in _BYTE_ORDERS:
        raise SettingsError(f"{path} has byte order {byte_order!r}; {_SAVE_AGAIN}.")
    storages: dict[str, np.ndarray] = {}

    def storage(kind: str, type_: _Name, key: str, device: str, size: int) -> Any:
        dtype = np.dtype(_STORAGES[type_.name]).newbyteorder(_BYTE_ORDERS[byte_order])
        info = records[f"data/{key}"]
        # Check the size before reading, so that a wrong one allocates no memory.
        if kind != "storage" or info.file_size != size * dtype.itemsize:
            raise SettingsError(f"storage {key} has {info.file_size} bytes")
        if key not in storages:
            storages[key] = np.frombuffer(read(info), dtype)
        if storages[key].dtype != dtype:
            raise SettingsError(f"storage {key} has two types")
        return storages[key]

    instructions = read(records["data.pkl"])
    try:
        return _interpret(instructions, storage)
    except _Refused as error:
        raise SettingsError(f"{path} holds {error}; {_SAVE_AGAIN}.") from error
    except _MALFORMED as error:
        raise SettingsError(
            f"{path} is damaged ({error or type(error).__name__}); copy it again."
        ) from error


class _Refused(Exception):
    """A file holds a name or an instruction that weights do not need."""


_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _interpret(instructions: bytes, storage: Callable[..., Any]) -> Any:
    """Interpret pickle instructions on a stack and return the tree."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(size: int) -> list[Any]:
        if size > len(stack):
            raise SettingsError("instructions without their arguments")
        items = stack[len(stack) - size :]
        del stack[len(stack) - size :]
        return items

    def pop_marked() -> list[Any]:
        return pop(len(stack) - marks.pop())

    argument: Any
    for opcode, argument, _ in pickletools.genops(instructions):
        name = opcode.name
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            stack.append(tuple(pop(_TUPLES[name])))
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(pop_marked()))
        elif name == "APPENDS":
            items = pop_marked()
            stack[-1].extend(items)
        elif name == "APPEND":
            item = pop(1)
            stack[-1].extend(item)
        elif name == "SETITEMS":
            items = pop_marked()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "SETITEM":
            item = pop(2)
            stack[-1].update([item])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            if argument not in _NAMES:
                raise _Refused(argument.replace(" ", "."))
            stack.append(_Name(argument))
        elif name == "BINPERSID":
            ((*reference,),) = pop(1)
            stack.append(storage(*reference))
        elif name == "REDUCE":
            function, arguments = pop(2)
            stack.append(_call(function.name, arguments))
        elif name == "BUILD":
            pop(1)  # Ignore attributes of a container, the versions of its modules.
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise _Refused(f"the instruction {name}")
    raise SettingsError("instructions without an end")


def _call(name: str, arguments: tuple) -> Any:
    if name == _ORDERED_DICT:
        return dict(*arguments)
    if name == _PARAMETER:
        return arguments[0]
    if name == _TENSOR:
        return _tensor(*arguments[:4])
    raise SettingsError(f"{name} is not a function")


def _tensor(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> np.ndarray:
    """Make a view of the storage; shape and strides count elements, as in torch."""
    if len(shape) != len(strides) or min((offset, *shape, *strides), default=0) < 0:
        raise SettingsError(f"a tensor {shape} with strides {strides}")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
    if 0 not in shape and last >= storage.size:
        raise SettingsError(f"a tensor {shape} beyond the end of its storage")
    # Strides of 0 repeat entries; whoever converts the array would copy each of them.
    size = math.prod(shape) * storage.itemsize
    check_expansion(size, storage.nbytes, f"a tensor {shape}")
    return np.lib.stride_tricks.as_strided(
        storage[offset:],
        shape,
        [stride * storage.itemsize for stride in strides],
        writeable=False,
    )


def save_torch_file(path: str | os.PathLike, tree: Any) -> None:
    """Write a file that `torch.load(path, weights_only=True)` reads.

    Args:
        tree: dictionaries, lists, tuples, strings, numbers, None and numpy arrays,
            which become tensors. An array that occurs twice is stored once, and its
            tensors share memory.

    Raises:
        SettingsError: another object in the tree, or an array whose type torch lacks.
    """
    path = Path(path)
    storages: dict[int, np.ndarray] = {}
    instructions = b"\x80\x02" + _encode(tree, storages) + b"."
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            records = {"data.pkl": instructions, "byteorder": b"little"}
            for key, array in enumerate(storages.values()):
                little = array.astype(array.dtype.newbyteorder("<"))
                records[f"data/{key}"] = little.tobytes()
            records["version"] = b"3\n"
            for name, content in records.items():
                # ZipInfo omits the time of writing, so equal trees give equal bytes.
                archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _encode(tree: Any, storages: dict[int, np.ndarray]) -> bytes:
    """Encode instructions that rebuild `tree`; add its arrays to `storages` by id."""
    if tree is None:
        return b"N"
    if isinstance(tree, bool):
        return b"\x88" if tree else b"\x89"
    if isinstance(tree, int):
        length = tree.bit_length() // 8 + 1
        return b"\x8a" + bytes([length]) + tree.to_bytes(length, "little", signed=True)
    if isinstance(tree, float):
        return b"G" + struct.pack(">d", tree)
    if isinstance(tree, str):
        text = tree.encode()
        return b"X" + struct.pack("<I", len(text)) + text

    def encode(*items: Any) -> bytes:
        return b"".join(_encode(item, storages) for item in items)

    if isinstance(tree, dict):
        items = [part for pair in tree.items() for part in pair]
        return b"}(" + encode(*items) + b"u"
    if isinstance(tree, list):
        return b"](" + encode(*tree) + b"e"
    if isinstance(tree, tuple):
        return b"(" + encode(*tree) + b"t"
    if isinstance(tree, np.ndarray):
        storages.setdefault(id(tree), tree)
        key = list(storages).index(id(tree))
        strides = [int(np.prod(tree.shape[i + 1 :])) for i in range(tree.ndim)]
        place = encode("storage") + _name(_storage_of(tree.dtype))
        place = b"(" + place + encode(str(key), "cpu", tree.size) + b"tQ"
        layout = encode(0, tree.shape, tuple(strides), False)
        hooks = _name(_ORDERED_DICT) + b")R"
        return _name(_TENSOR) + b"(" + place + layout + hooks + b"tR"
    raise SettingsError(
        f"a {type(tree).__name__} cannot be written to a file of torch.save; use "
        "containers, numbers, strings, None and numpy arrays."
    )


def _name(name: str) -> bytes:
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


def _storage_of(dtype: np.dtype) -> str:
    for name, code in _STORAGES.items():
        if np.dtype(code) == dtype.newbyteorder("="):
            return name
    raise SettingsError(
        f"torch has no tensors of type {dtype}; convert them to float32."
    )

"""Damaged files for readers: strategies of hypothesis, and what watches the readers.

A case is a folder in memory, from relative names to contents. A content is the bytes of
a file, a `Link`, or a function that writes to the path it gets.
"""

import contextlib
import copy
import io
import json
import os
import pickle
import re
import shutil
import signal
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from hypothesis import strategies as st
from numpy.lib import format as npy


class Link(NamedTuple):
    """A symbolic link. target: where it leads."""

    target: str


Content = bytes | Link | Callable[[Path], None]
Folder = dict[str, Content]

# Numbers that are wrong almost everywhere.
NUMBERS = (0, 1, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
ODD = (
    *(None, True, False, 0, -1, 1, 3, 0.5, -2.5, 1e308, float("nan"), float("inf")),
    *(2**70, 10**400, "", "x", "1:2", "Größe\x00\n", "../../etc/passwd", "/" * 300),
    *([], {}, [[]], [1, -1], [0.5, None], {"a": {}}, {"": 1}, [10**12], ["x", 2]),
)
NESTED = b"[" * 100_000
# What a name may be besides the right one.
NAMES = ("", "x", "Größe", "日本", "a/b", "../out", "a\x00b", "\udcff", "n" * 300)


class _Payload:
    """An object that makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (CANARY,)


CANARY = "executed-what-a-file-says"
PICKLE = pickle.dumps(_Payload())


def write(folder: Path, case: Folder) -> None:
    """Write a case in place of the one before."""
    remove(folder)
    folder.mkdir(parents=True)
    for name, content in case.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, Link):
            path.symlink_to(content.target)
        else:
            content(path)


def remove(folder: Path) -> None:
    """Remove a folder and what is in it, but nothing that links lead to."""
    shutil.rmtree(folder, ignore_errors=True)


def read_folder(folder: Path) -> Folder:
    """The files of a folder as a case."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@st.composite
def damaged_bytes(draw: Any, content: bytes) -> bytes:
    """Bytes that were cut, flipped, repeated, removed or written over."""
    for _ in range(draw(st.integers(1, 2))):
        kind = draw(st.integers(0, 8))
        place = draw(st.integers(0, 2**32 - 1)) % (len(content) + 1)
        number = draw(st.sampled_from(NUMBERS))
        length = 1 + draw(st.integers(0, 63))
        before, after = content[:place], content[place:]
        if kind == 0:
            content = before
        elif kind == 1:
            content = after
        elif kind <= 4 and after:
            flipped = after[0] ^ (1 + number % 255)
            content = before + bytes([flipped]) + after[1:]
        elif kind == 5:
            width = 4 if number < 2**32 else 8
            content = before + number.to_bytes(width, "little") + after[width:]
        elif kind == 6:
            content = before + after[length:]
        elif kind == 7:
            content = before + after[:length] + after
        else:
            content = before + bytes(length) + after[length:]
    return content


@st.composite
def damaged_json(draw: Any, tree: Any) -> bytes:
    """A JSON text in which values are replaced, removed, added or moved."""
    if draw(st.integers(0, 30)) == 0:
        return NESTED
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        nodes = list(_containers(tree))
        node = nodes[draw(st.integers(0, 2**16)) % len(nodes)] if nodes else None
        odd = copy.deepcopy(draw(st.sampled_from(ODD)))
        if not node:
            return json.dumps(odd).encode()
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = keys[draw(st.integers(0, 2**16)) % len(keys)]
        kind = draw(st.integers(0, 5))
        if kind <= 3:
            node[key] = odd
        elif kind == 4:
            del node[key]
        elif isinstance(node, dict):
            node[draw(st.sampled_from(NAMES))] = node[key]
        else:
            node.append(odd)
    return json.dumps(tree).encode(errors="surrogatepass")


def _containers(tree: Any) -> Iterator[Any]:
    if isinstance(tree, (dict, list)):
        if tree:
            yield tree
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _containers(value)


@st.composite
def damaged_folder(
    draw: Any, folders: Sequence[Folder], *, pipes: bool = True
) -> Folder:
    """A folder of which one or two entries are damaged, missing, renamed or links.

    Args:
        pipes: whether files may become pipes, which whoever opens them waits for.
    """
    case = dict(folders[draw(st.integers(0, len(folders) - 1))])
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(case) or ["file"]))
        content = case.get(name, b"")
        kind = draw(st.integers(0, 19))
        if kind == 0:
            case.pop(name, None)
        elif kind == 1:
            case[name] = Link(draw(st.sampled_from([name.rpartition("/")[2], "/dev"])))
        elif kind == 2:
            case[name] = os.mkfifo if pipes and draw(st.booleans()) else Path.mkdir
        elif kind == 3 and isinstance(content, bytes):
            case.pop(name, None)
            case[f"{name.rpartition('/')[0]}/Größe".lstrip("/")] = content
        elif isinstance(content, bytes):
            case[name] = draw(_damaged_file(content))
    return case


def _damaged_file(content: bytes) -> st.SearchStrategy[bytes]:
    """Bytes damaged anywhere; in an archive or in JSON also within what it holds."""
    strategies = [damaged_bytes(content)]
    if content[:2] == b"PK":
        with contextlib.suppress(Exception):  # It may be damaged already.
            strategies += 2 * [damaged_archive(unzipped(content))]
    elif content[:1] in b"{[":
        with contextlib.suppress(ValueError, RecursionError):
            strategies += 3 * [damaged_json(json.loads(content))]
    return st.one_of(strategies)


@st.composite
def damaged_archive(draw: Any, members: list[list[Any]]) -> bytes:
    """A zip archive that is sound, but whose members are damaged, renamed or bombs."""
    members = [list(member) for member in members]
    index = draw(st.integers(0, len(members) - 1))
    kind = draw(st.integers(0, 9))
    if kind == 0:
        members.append([members[index][0], PICKLE])  # A name that occurs twice.
    elif kind == 1:
        members[index][0] = draw(st.sampled_from(NAMES[1:7]))
    elif kind == 2:
        members[index][1] = PICKLE
    elif kind == 3:
        members[index][1] = members[index][1][:128] + bytes(4_000_000)
    else:
        members[index][1] = draw(damaged_bytes(members[index][1]))
    method = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    return zipped(members, method=method if kind != 3 else zipfile.ZIP_DEFLATED)


def unzipped(content: bytes) -> list[list[Any]]:
    """[name, content] of the members of a zip archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [[name, archive.read(name)] for name in archive.namelist()]


def zipped(members: Sequence[Sequence[Any]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of (name, content)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of names that occur twice.
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive.writestr(info, content)
    return buffer.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as `.npy`; objects become a pickle that would execute something."""
    buffer = io.BytesIO()
    if array.dtype.hasobject:
        header = {"descr": "|O", "fortran_order": False, "shape": array.shape}
        npy.write_array_header_1_0(buffer, header)
        return buffer.getvalue() + PICKLE
    npy.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npy_lie(shape: str, descr: str = "'<f4'", rest: bytes = bytes(40)) -> bytes:
    """A `.npy` whose header states any shape and type."""
    text = (
        f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    )
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + rest


def odd_arrays(num_rows: int) -> list[np.ndarray]:
    """Arrays of wrong types, shapes and numbers, beside some that may be right."""
    draws = np.random.default_rng(0)
    shapes = [(), (0,), (num_rows,), (num_rows, 0), (num_rows, 1), (num_rows, 2)]
    shapes += [(num_rows, 3), (num_rows - 1, 2), (num_rows + 1, 2), (1, 2), (2,), (1,)]
    shapes += [(num_rows, 2, 2), (num_rows, 3, 4, 4), (num_rows, 4, 4, 3)]
    arrays = [draws.uniform(-1, 1, shape).astype(np.float32) for shape in shapes]
    table = draws.uniform(-1, 1, (num_rows, 2))
    for value in (np.nan, np.inf, 1e300, -1e30, 2.0):
        changed = table.copy()
        changed[-1, 0] = value
        arrays.append(changed)
    kinds = ["f2", "f8", ">f4", "i1", "u1", "i8", ">i8", "u8", "?", "c8", "S3", "U3"]
    kinds += ["M8[s]", "m8[s]", "V4", [("a", "f4"), ("b", "i4")], "O"]
    arrays += [np.zeros((num_rows, 2), kind) for kind in kinds]
    for lengths in ([2, 3], [-1, 6], [0, 5], [2**62] * 4, [5], [1] * 5, [2, 2], [6]):
        arrays.append(np.array(lengths, np.int64))
    arrays.append(np.array([2**64 - 1, 6], np.uint64))
    arrays.append(np.array([2, 3], np.uint8))
    arrays.append(np.array([2.0, 3.0]))
    arrays.append(np.array([False, True, False, False, True][:num_rows]))
    return arrays


class Hang(BaseException):
    """A reader took too long; no reader catches this."""


class Watch:
    """Notes what a reader does beside reading; use as a context manager.

    An audit hook cannot be removed, so there is one for all, which looks only within.

    Args:
        seconds: after which reading raises `Hang`; 0: never, for callers that have an
            alarm of their own.
    """

    _now: "Watch | None" = None
    _hooked = False
    _FORBIDDEN = re.compile(
        r"pickle\.find_class|os\.(system|exec|posix_spawn|fork|remove|rename|mkdir)"
        r"|subprocess\.Popen|socket\.connect|shutil\.\w+"
    )

    def __init__(self, seconds: int = 10) -> None:
        self.seen: list[str] = []
        self._seconds = seconds

    def __enter__(self) -> "Watch":
        if not Watch._hooked:
            sys.addaudithook(Watch._audit)
            Watch._hooked = True
        Watch._now = self
        if self._seconds:
            self._before = signal.signal(signal.SIGALRM, self._stop)
            signal.alarm(self._seconds)
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._seconds:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, self._before)
        Watch._now = None

    @staticmethod
    def _audit(event: str, args: tuple) -> None:
        now = Watch._now
        if now is None:
            return
        if event == "open":
            path, _, flags = args
            if str(path).startswith(str(jax.config.jax_compilation_cache_dir)):
                return  # JAX keeps the programs that it compiles.
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif not Watch._FORBIDDEN.match(event):
            return
        now.seen.append(f"{event} {args!r:.200}")

    def _stop(self, *_: Any) -> None:
        raise Hang(f"reading took more than {self._seconds} s")


def reset_peak() -> int:
    """Forget the largest memory of this process so far; returns its present bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """The largest memory of this process since `reset_peak`, in bytes."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0

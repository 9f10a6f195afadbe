"""Readers of demonstrations and of their bounds."""

import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hypothesis import strategies as st

from dppo_jax.demonstrations import (
    load_demonstrations,
    save_d4rl,
    save_dppo_npz,
    save_minari,
)
from dppo_jax.normalize import load_normalizer
from tests import damage, tiny
from tests.damage import Folder
from tests.demonstrations.raw import ACTIONS, LENGTHS, RAW, REWARDS, STATE
from tests.readers.kinds import Reader, damaged, either, made

ARRAYS = damage.odd_arrays(len(STATE))


# Archives of arrays


@functools.cache
def npz() -> Folder:
    pixels = {"rgb": np.arange(5 * 48, dtype=np.uint8).reshape(5, 4, 4, 3)}
    data = RAW._replace(observations=RAW.observations | pixels)
    return made(lambda folder: save_dppo_npz(folder, data, overwrite=True))


_NPZ_NAMES = ("states", "actions", "traj_lengths", "images", "rewards", "terminals")
_LIES = [
    damage.npy_lie(shape, descr)
    for shape in ("(10**12,)", "(1000000000000,)", "(5, -2)", "(2, 5", "(5, 2)", "5")
    for descr in ("'<f4'", "'|O'", "'<f9'", "[('a', '<f4')]", "'S1000000000'")
]


@st.composite
def npz_cases(draw: Any) -> Folder:
    """Sound archives of odd arrays."""
    content = {
        "states": np.clip(STATE, -1, 1),
        "actions": np.clip(ACTIONS, -1, 1),
        "traj_lengths": LENGTHS,
    }
    members = {name: damage.npy_bytes(x) for name, x in content.items()}
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(_NPZ_NAMES))
        if draw(st.integers(0, 3)):
            odd = draw(st.sampled_from(ARRAYS))
            members[name] = damage.npy_bytes(odd)
        else:
            members[name] = draw(st.sampled_from([*_LIES, damage.PICKLE, b""]))
    archive = damage.zipped([(f"{k}.npy", x) for k, x in members.items()])
    return npz() | {"train.npz": archive}


@st.composite
def bounds_cases(draw: Any) -> Folder:
    content = tiny.NORMALIZER._asdict()
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(content)))
        content[name] = draw(st.sampled_from(ARRAYS))
    members = [
        (f"{k}.npy", damage.npy_bytes(np.asarray(x))) for k, x in content.items()
    ]
    return {"normalization.npz": damage.zipped(members)}


def bounds() -> Folder:
    return {"normalization.npz": npz()["normalization.npz"]}


# HDF5


def d4rl() -> Folder:
    return made(lambda folder: save_d4rl(folder / "data.hdf5", RAW))


def robomimic() -> Folder:
    return made(lambda folder: _write_demos(folder / "data.hdf5"))


def _write_demos(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for i, rows in enumerate((slice(0, 3), slice(3, 5))):
            demo = file.create_group(f"data/demo_{i}")
            demo["obs/object"], demo["actions"] = STATE[rows], ACTIONS[rows]
            demo["rewards"], demo["dones"] = REWARDS[rows], RAW.terminals[rows]
        file["mask/train"] = np.array(["demo_1"], "S")


def _hdf5_oddity(kind: int, array: np.ndarray) -> Callable[[h5py.Group, str], None]:
    """Puts something else than the expected table under a name."""

    def put(group: h5py.Group, name: str) -> None:
        if kind == 0:
            group[name] = h5py.ExternalLink("/etc/passwd", "/")
        elif kind == 1:
            group[name] = h5py.SoftLink("/nowhere")
        elif kind == 2:
            group[name] = h5py.SoftLink("/")
        elif kind == 3:
            group.create_group(name)
        elif kind == 4:
            group.create_dataset(name, (10**12, 2), "f4", chunks=(1024, 2))
        elif kind == 5:
            group.create_dataset(name, (5, 10**10), "f4", chunks=(1, 1024))
        elif kind == 6:
            group.create_dataset(
                name, (5, 2), "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
            )
        elif kind == 7:
            layout = h5py.VirtualLayout((5, 2), "f4")
            layout[:] = h5py.VirtualSource("/etc/passwd", "x", (5, 2))
            group.create_virtual_dataset(name, layout)
        elif kind == 8:
            group.create_dataset(name, data=["a", "ä"], dtype=h5py.string_dtype())
        elif kind == 9:
            group[name] = h5py.Empty("f4")
        elif kind == 10:
            group[name] = h5py.SoftLink(f"{group.name}/{name}")
        elif array.dtype.kind in "fiubcSV" and array.dtype.hasobject is False:
            group[name] = array

    return put


_D4RL_NAMES = ("observations", "actions", "rewards", "terminals", "timeouts")
_DEMO_NAMES = ("data", "data/demo_0", "data/demo_0/obs", "data/demo_1/obs/object")
_DEMO_NAMES += ("data/demo_0/actions", "data/demo_1/rewards", "data/demo_1/dones")
_DEMO_NAMES += ("mask", "mask/train", "data/Größe")


@st.composite
def hdf5_cases(draw: Any, sound: Folder, names: tuple[str, ...]) -> Folder:
    """A sound file in which one or two tables are something else."""
    changes = [
        (
            draw(st.sampled_from(names)),
            _hdf5_oddity(draw(st.integers(0, 25)), draw(st.sampled_from(ARRAYS))),
        )
        for _ in range(draw(st.integers(1, 2)))
    ]

    def change(file: h5py.File, name: str, put: Callable[..., None]) -> None:
        parent, _, last = name.rpartition("/")
        group = file.get(parent or "/")
        if isinstance(group, h5py.Group):
            if last in group:
                del group[last]
            put(group, last)

    def content(path: Path) -> None:
        path.write_bytes(sound["data.hdf5"])
        with h5py.File(path, "r+") as file:
            first, *more = changes
            change(file, *first)
            for place in more:
                # After the first change it may be a place where nothing can be put.
                with contextlib.suppress(OSError, RuntimeError, KeyError, ValueError):
                    change(file, *place)

    return {"data.hdf5": content}


def _read_demos(folder: Path) -> None:
    path = folder / "data.hdf5"
    load_demonstrations(path, obs_keys=["object"])
    load_demonstrations(path, obs_keys=["object"], filter_key="train")


@functools.cache
def minari() -> Folder:
    return made(lambda folder: save_minari(folder / "set", RAW))


_MINARI_NAMES = ("episode_0", "episode_0/observations", "episode_1/actions")
_MINARI_NAMES += ("episode_0/rewards", "episode_1/terminations", "episode_2")


@st.composite
def minari_cases(draw: Any) -> Folder:
    (name,) = [name for name in minari() if name.endswith(".hdf5")]
    sound = {"data.hdf5": minari()[name]}
    return minari() | {name: draw(hdf5_cases(sound, _MINARI_NAMES))["data.hdf5"]}


# Parquet

COLUMNS = {
    "observation.state": STATE.tolist(),
    "action": ACTIONS.tolist(),
    "episode_index": np.repeat([0, 1], LENGTHS).tolist(),
    "frame_index": [0, 1, 2, 0, 1],
    "next.reward": REWARDS.tolist(),
    "next.done": RAW.terminals.tolist(),
}
_ODD_COLUMNS = [
    *([None] * 5, [0, None, 1, 1, 1], ["a", "b", "c", "d", "é"], [0.5] * 5, [5] * 5),
    *([0, 0, 0, 0, 0], [2, 1, 0, 1, 0], [-1, -1, -1, 2**62, 2**62], [True] * 5),
    *([[]] * 5, [[1.0]] * 5, [[1.0], [], [1.0, 2.0], None, [3.0]], [["x"]] * 5),
    *([[None, 1.0]] * 5, [[float("nan"), 1e300]] * 5, [[2**62, 1]] * 5),
    *([[[1.0, 2.0]]] * 5, [{"a": 1}] * 5, [b"x"] * 5, [0.0, 1.0, float("nan"), 1, 0]),
]


def lerobot(columns: dict[str, list] = COLUMNS, info: bytes = b"") -> Folder:
    import pyarrow
    from pyarrow import parquet

    file = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), file)
    features = {name: {"dtype": "float32"} for name in columns}
    about = {"features": features, "splits": {"train": "0:1"}}
    return {
        "meta/info.json": info or json.dumps(about).encode(),
        "data/chunk-000/file-000.parquet": file.getvalue().to_pybytes(),
    }


@st.composite
def lerobot_cases(draw: Any) -> Folder:
    columns = dict(COLUMNS)
    for _ in range(draw(st.integers(1, 2))):
        columns[draw(st.sampled_from(sorted(columns)))] = draw(
            st.sampled_from(_ODD_COLUMNS)
        )
    case = lerobot(columns)
    if draw(st.booleans()):
        case["data/chunk-000/file-001.parquet"] = lerobot()[
            "data/chunk-000/file-000.parquet"
        ]
    return case


def _read_lerobot(folder: Path) -> None:
    load_demonstrations(folder)
    load_demonstrations(folder, filter_key="train")


READERS = {
    "dppo_npz": Reader(
        either(lambda: damaged(npz), npz_cases), load_demonstrations, npz
    ),
    "normalization": Reader(
        either(lambda: damaged(bounds), bounds_cases), load_normalizer, bounds
    ),
    "d4rl": Reader(
        either(lambda: damaged(d4rl), lambda: hdf5_cases(d4rl(), _D4RL_NAMES)),
        lambda folder: load_demonstrations(folder / "data.hdf5"),
        d4rl,
    ),
    "robomimic": Reader(
        either(
            lambda: damaged(robomimic), lambda: hdf5_cases(robomimic(), _DEMO_NAMES)
        ),
        _read_demos,
        robomimic,
    ),
    "minari": Reader(
        either(lambda: damaged(minari), minari_cases),
        lambda folder: load_demonstrations(folder / "set", format="minari"),
        minari,
        package="minari",
    ),
    "lerobot": Reader(
        either(lambda: damaged(lerobot), lerobot_cases),
        _read_lerobot,
        lerobot,
        package="pyarrow",
    ),
}

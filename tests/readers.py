"""All readers of files: what they read, sound examples, and how to damage them."""

import contextlib
import functools
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import jax
import numpy as np
from hypothesis import strategies as st

from dppo_jax.demonstrations import (
    load_demonstrations,
    save_d4rl,
    save_dppo_npz,
    save_minari,
)
from dppo_jax.errors import SettingsError
from dppo_jax.interop import (
    load_lerobot_policy,
    load_reference_checkpoint,
    load_torch_file,
    save_reference_checkpoint,
    save_torch_file,
)
from dppo_jax.interop.reference_checkpoint import ReferenceCheckpoint
from dppo_jax.interop.safetensors_file import load_safetensors, save_safetensors
from dppo_jax.normalize import load_normalizer
from dppo_jax.policies import PolicyParams
from dppo_jax.training.checkpoint import read_policy, read_state
from dppo_jax.training.config_file import load_config
from dppo_jax.training.metrics import read_metrics
from dppo_jax.training.old_settings import flatten
from experiments.defaults import default_config
from experiments.settings import override, settings_of
from tests import damage, lerobot_policies, tiny
from tests.conftest import REPOSITORY
from tests.damage import Folder
from tests.demonstrations.raw import ACTIONS, LENGTHS, RAW, REWARDS, STATE

STORED = REPOSITORY / "tests" / "data" / "format_1"
_ARRAYS = damage.odd_arrays(len(STATE))


class Reader(NamedTuple):
    """One kind of file.

    cases: () -> strategy of damaged folders.
    read: folder -> anything; it must end in data or in one of `errors`.
    sound: () -> a folder that is read without error.
    package: that must be installed; empty: none.
    """

    cases: Callable[[], st.SearchStrategy[Folder]]
    read: Callable[[Path], Any]
    sound: Callable[[], Folder]
    package: str = ""
    errors: tuple[type[Exception], ...] = (SettingsError,)


def made(make: Callable[[Path], Any]) -> Folder:
    """The files that a function writes into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        return damage.read_folder(Path(folder))


def _damaged(
    *sound: Callable[[], Folder], pipes: bool = True
) -> st.SearchStrategy[Folder]:
    return damage.damaged_folder([make() for make in sound], pipes=pipes)


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
            odd = draw(st.sampled_from(_ARRAYS))
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
        content[name] = draw(st.sampled_from(_ARRAYS))
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
            _hdf5_oddity(draw(st.integers(0, 25)), draw(st.sampled_from(_ARRAYS))),
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

_COLUMNS = {
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


def lerobot(columns: dict[str, list] = _COLUMNS, info: bytes = b"") -> Folder:
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
    columns = dict(_COLUMNS)
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


# Weights

_WEIGHTS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "n": np.arange(3),
    "empty": np.zeros((0, 2), np.float16),
}


def torch() -> Folder:
    tree = {"model": {**_WEIGHTS, "again": [_WEIGHTS["w"]]}, "itr": 3, "x": (1.5, "ä")}
    return made(lambda folder: save_torch_file(folder / "a.pt", tree))


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


_STORAGE = _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu")
_PIECES = [
    *(b"}", b"]", b")", b"(", b"N", b"\x88", b"K\x05", b"M\xff\xff", b"e", b"u", b"t"),
    *(
        b"a",
        b"s",
        b"\x85",
        b"\x86",
        b"\x87",
        b"R",
        b"Q",
        b"b",
        b"q\x00",
        b"h\x00",
        b".",
    ),
    *(b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"0"),
    *(b"ctorch\nFloatStorage\n", b"cos\nsystem\n", _text("ls"), _text("storage"), b"2"),
    b"(" + _STORAGE + b"K\x06tQ",
    b"(" + _STORAGE + b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7ftQ",
    *(b"\x8a\x05\x00\x00\x00\x00\x10", b"G" + struct.pack(">d", np.nan), b"I01\n"),
    *(
        b"K\x00(K\x02K\x03t(K\x03K\x01t\x89",
        b"K\x00(\x8a\x06\x00\x00\x00\x00\x00\x01tK",
    ),
    b"(ctorch._utils\n_rebuild_tensor_v2\n(" + b"(" + _STORAGE + b"K\x06tQ",
    b"K\x00\x8a\x05\x00\x00\x00\x00\x10\x85K\x00\x85\x89)R",  # a stride of 0
    b"h\x00h\x00\x86q\x00" * 60,  # 2^60 references to one object
]


@st.composite
def torch_cases(draw: Any) -> Folder:
    """Any order of instructions, in a sound archive."""
    pieces = draw(st.lists(st.sampled_from(_PIECES), max_size=12))
    instructions = b"\x80\x02" + b"".join(pieces) + draw(st.sampled_from([b".", b""]))
    storage = np.arange(6, dtype=np.float32).tobytes()
    members = [("a/data.pkl", instructions), ("a/data/0", storage), ("a/version", b"3")]
    return {"a.pt": damage.zipped(members)}


@functools.cache
def reference() -> Folder:
    """A checkpoint of the reference implementation, a small Gaussian policy."""
    policy = tiny.tiny_gaussian_policy()
    shapes = jax.eval_shape(policy.init, jax.random.key(0), tiny.OBS)
    network = tiny.random_like(shapes.tuned)
    checkpoint = ReferenceCheckpoint(
        "pretrain", PolicyParams(network, network), None, (0.1, 1.0), 3
    )
    return made(lambda folder: save_reference_checkpoint(folder / "a.pt", checkpoint))


@st.composite
def reference_cases(draw: Any) -> Folder:
    """A tree whose entries have other shapes, types or names."""
    tree = made_tree()
    weights = dict(tree["model"])
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(weights)))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            del weights[name]
        elif kind == 1:
            weights[draw(st.sampled_from(damage.NAMES[:6]))] = weights[name]
        elif kind == 2:
            weights[name] = draw(st.sampled_from([None, 1, "x", [], {}, 2.5]))
        else:
            array = draw(st.sampled_from(_ARRAYS))
            if array.dtype.kind in "fiub" and array.dtype.itemsize > 0:
                weights[name] = (
                    array if array.dtype != np.uint64 else array.astype("i8")
                )
    tree = tree | {"model": weights, "ema": weights}
    if draw(st.integers(0, 5)) == 0:
        tree[draw(st.sampled_from(["epoch", "itr", "model"]))] = draw(
            st.sampled_from([None, "x", -1, 2.5, []])
        )
    return made(lambda folder: save_torch_file(folder / "a.pt", tree))


@functools.cache
def made_tree() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.pt")
        path.write_bytes(reference()["a.pt"])
        return load_torch_file(path)


def safetensors() -> Folder:
    return made(lambda folder: save_safetensors(folder / "a.safetensors", _WEIGHTS))


@st.composite
def safetensors_cases(draw: Any) -> Folder:
    """A sound layout with a damaged header."""
    content = safetensors()["a.safetensors"]
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = draw(damage.damaged_json(header))
    size = len(text).to_bytes(8, "little")
    return {"a.safetensors": size + text + content[8 + length :]}


@functools.cache
def lerobot_policy(pipelines: bool = True) -> Folder:
    def make(folder: Path) -> None:
        lerobot_policies.save_policy(folder / "policy", pipelines=pipelines)

    return made(make)


@st.composite
def lerobot_policy_cases(draw: Any) -> Folder:
    """A policy whose JSON files are damaged, which is most of what can differ."""
    case = dict(lerobot_policy(draw(st.booleans())))
    names = sorted(name for name in case if name.endswith(".json"))
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(names))
        case[name] = draw(damage.damaged_json(json.loads(lerobot_policy()[name])))
    return case


# Runs


@functools.cache
def run() -> Folder:
    return damage.read_folder(STORED)


def run_config() -> Folder:
    return {"config.json": run()["config.json"]}


@st.composite
def config_cases(draw: Any) -> Folder:
    return {"config.json": draw(damage.damaged_json(json.loads(run()["config.json"])))}


def _read_config(folder: Path) -> None:
    saved = load_config(folder)
    if saved is not None:
        settings_of(saved, str(folder))


def metrics() -> Folder:
    return {"metrics.csv": run()["metrics.csv"]}


@st.composite
def metrics_cases(draw: Any) -> Folder:
    lines = run()["metrics.csv"].decode().splitlines()
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.integers(0, len(lines) - 1))
        cells = lines[row].split(",")
        odd = ["", "nan", "-inf", "1e999", "x", '"', '"a', "\x00", "é", "0", "1" * 9999]
        cells[draw(st.integers(0, len(cells) - 1))] = draw(st.sampled_from(odd))
        lines[row] = draw(st.sampled_from([",", ",,", "\n", ", "])).join(cells)
    return {"metrics.csv": "\n".join([*lines, ""]).encode()}


def _read_checkpoint(folder: Path) -> None:
    read_policy(folder)
    read_state(folder)


_SETTINGS = sorted(flatten(default_config().to_dict()))
_VALUES = [
    "",
    "None",
    "nan",
    "-inf",
    "1e999",
    "-1",
    "0",
    "2.5",
    "(1,",
    "(1,2)",
    "[" * 300,
]
_VALUES += [
    "-" * 3000 + "1",
    "9" * 5000,
    "x" * 5000,
    "é",
    "\x00",
    "'",
    "True",
    "mlp",
    "[]",
]
_VALUES += ["1,2,a", "{'a': 1}", "lambda: 0", "__import__('os').system('ls')", "((),)"]


@st.composite
def override_cases(draw: Any) -> Folder:
    """Settings of a command line, one a line."""
    names = st.one_of(
        st.sampled_from(_SETTINGS),
        st.sampled_from(
            [*damage.NAMES, "env", "env.options.x", "seed.x", "model..kind"]
        ),
    )
    settings = [
        draw(names) + draw(st.sampled_from(["=", "=", "=", ""])) + value
        for value in draw(st.lists(st.sampled_from(_VALUES), min_size=1, max_size=3))
    ]
    return {"settings": "\n".join(settings).encode(errors="surrogatepass")}


def _override(folder: Path) -> None:
    text = (folder / "settings").read_text(errors="surrogateescape")
    override(default_config().lock(), text.split("\n"), "--config.")


def _either(*strategies: Callable[[], st.SearchStrategy]) -> Callable[[], Any]:
    return lambda: st.one_of([make() for make in strategies])


READERS = {
    "dppo_npz": Reader(
        _either(lambda: _damaged(npz), npz_cases), load_demonstrations, npz
    ),
    "normalization": Reader(
        _either(lambda: _damaged(bounds), bounds_cases), load_normalizer, bounds
    ),
    "d4rl": Reader(
        _either(lambda: _damaged(d4rl), lambda: hdf5_cases(d4rl(), _D4RL_NAMES)),
        lambda folder: load_demonstrations(folder / "data.hdf5"),
        d4rl,
    ),
    "robomimic": Reader(
        _either(
            lambda: _damaged(robomimic), lambda: hdf5_cases(robomimic(), _DEMO_NAMES)
        ),
        _read_demos,
        robomimic,
    ),
    "minari": Reader(
        _either(lambda: _damaged(minari), minari_cases),
        lambda folder: load_demonstrations(folder / "set", format="minari"),
        minari,
        package="minari",
    ),
    "lerobot": Reader(
        _either(lambda: _damaged(lerobot), lerobot_cases),
        _read_lerobot,
        lerobot,
        package="pyarrow",
    ),
    "torch": Reader(
        _either(lambda: _damaged(torch), torch_cases),
        lambda folder: load_torch_file(folder / "a.pt"),
        torch,
    ),
    "reference": Reader(
        _either(lambda: _damaged(reference), reference_cases),
        lambda folder: load_reference_checkpoint(folder / "a.pt"),
        reference,
    ),
    "safetensors": Reader(
        _either(lambda: _damaged(safetensors), safetensors_cases),
        lambda folder: load_safetensors(folder / "a.safetensors"),
        safetensors,
    ),
    "lerobot_policy": Reader(
        _either(lambda: _damaged(lerobot_policy), lerobot_policy_cases),
        lambda folder: load_lerobot_policy(folder / "policy"),
        lerobot_policy,
    ),
    "config": Reader(
        _either(lambda: _damaged(run_config), config_cases), _read_config, run_config
    ),
    "overrides": Reader(
        override_cases, _override, lambda: {"settings": b"seed=3\nenv.max_steps=5"}
    ),
    "metrics": Reader(
        _either(lambda: _damaged(metrics), metrics_cases), read_metrics, metrics
    ),
    # Orbax waits for a pipe, which nobody puts into a checkpoint.
    "checkpoint": Reader(lambda: _damaged(run, pipes=False), _read_checkpoint, run),
}

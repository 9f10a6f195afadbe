"""Damaged files that readers once took for good, or failed over, one case for each."""

import json
import os
import zipfile

import h5py
import numpy as np
import pytest

from dppo_jax import expansion
from dppo_jax.errors import SettingsError
from tests import damage
from tests.demonstrations.raw import ACTIONS, LENGTHS, STATE
from tests.readers import READERS, demonstrations, policies

ARRAYS = {"states": np.clip(STATE, -1, 1), "actions": np.clip(ACTIONS, -1, 1)}
ARRAYS |= {"traj_lengths": LENGTHS}


def npz(**changes):
    """A data set of arrays, or of what stands in the place of one."""
    members = [
        (f"{name}.npy", x if isinstance(x, bytes) else damage.npy_bytes(x))
        for name, x in (ARRAYS | changes).items()
    ]
    archive = damage.zipped(members, zipfile.ZIP_DEFLATED)
    return demonstrations.npz() | {"train.npz": archive}


def hdf5(sound, name, put):
    """A file in which `put(group, name)` makes what stands under a name."""

    def write(path):
        path.write_bytes(sound["data.hdf5"])
        with h5py.File(path, "r+") as file:
            parent, _, last = name.rpartition("/")
            if name in file:
                del file[name]
            put(file[parent or "/"], last)

    return {"data.hdf5": write}


def outside(group, name):
    group[name] = h5py.ExternalLink("/etc/passwd", "/")


def in_other_file(group, name):
    group.create_dataset(
        name, (5, 2), "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    )


def endless(group, name):
    group.create_dataset(name, (5, 10**9), "f4", chunks=(1, 1024))


def looping(group, name):
    group[name] = h5py.SoftLink(f"{group.name}/{name}")


def not_text(group, name):
    """The name of a neighbour is no UTF-8; what was there is gone."""
    group.create_group(name.encode() + b"_\xff")


def in_minari(name, put):
    """The same for a data set of Minari."""
    (table,) = [path for path in demonstrations.minari() if path.endswith(".hdf5")]
    sound = {"data.hdf5": demonstrations.minari()[table]}
    return demonstrations.minari() | {table: hdf5(sound, name, put)["data.hdf5"]}


def info(**changes):
    about = json.loads(demonstrations.lerobot()["meta/info.json"]) | changes
    return demonstrations.lerobot() | {"meta/info.json": json.dumps(about).encode()}


def columns(**changes):
    return demonstrations.lerobot(demonstrations.COLUMNS | changes)


def required(name):
    """The schema says that no row is missing, but not the statistics of the column.

    The package ends the process if it is asked for the metadata of that column.
    """
    content = demonstrations.lerobot()["data/chunk-000/file-000.parquet"]
    # Optional, then the length of the name: as Thrift writes an entry of the schema.
    optional = b"5\x02\x18" + bytes([len(name)]) + name.encode()
    assert content.count(optional) == 1
    changed = content.replace(optional, optional.replace(b"5\x02", b"5\x00"))
    return demonstrations.lerobot() | {"data/chunk-000/file-000.parquet": changed}


def two_sizes():
    name = "data/chunk-000/file-001.parquet"
    other = columns(**{"observation.state": [[1.0]] * 5, "episode_index": [2] * 5})
    other["data/chunk-000/file-000.parquet"], other[name] = (
        demonstrations.lerobot()["data/chunk-000/file-000.parquet"],
        other["data/chunk-000/file-000.parquet"],
    )
    return other


def torch(instructions):
    storage = np.arange(6, dtype=np.float32).tobytes()
    members = [("a/data.pkl", b"\x80\x02" + instructions + b"."), ("a/data/0", storage)]
    return {"a.pt": damage.zipped(members)}


def not_utf8(content, name, index):
    """An archive with a name that is no text: before its bytes (0), or listed (1)."""
    before, *after = content.split(name.encode())
    assert len(after) == 2
    names = [name.encode(), name.encode()]
    names[index] = name.encode().replace(b"\xc3", b"\xff")
    return before + names[0] + after[0] + names[1] + after[1]


def torch_not_utf8(index):
    content = damage.zipped([("é/data.pkl", b"\x80\x02}.")])
    return {"a.pt": not_utf8(content, "é/data.pkl", index)}


def npz_not_utf8():
    case = npz()
    members = [*damage.unzipped(case["train.npz"]), ("é", b"")]
    return case | {"train.npz": not_utf8(damage.zipped(members), "é", 1)}


def repeated(size):
    """A tensor [size] with a stride of 0, so that one number stands for all."""
    storage = b"(" + policies.STORAGE + b"K\x06tQ"
    layout = b"K\x00(\x8a\x05" + size.to_bytes(5, "little") + b"t(K\x00t"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return torch(rebuild + storage + layout + hooks + b"tR")


def metrics(text):
    return {"metrics.csv": text.encode()}


def settings(text):
    return {"settings": text.encode()}


NESTED = {"config.json": b'{"a":' + damage.NESTED}
HUGE_NUMBER = b'{"algorithm": {"ppo": {"discount": 1%s}}}' % (400 * b"0")
_ENTRY = b'{"x":{"dtype":"F32","shape":[0,%d,%d],"data_offsets":[0,0]}}' % (2**62, 8)
EMPTY_TENSOR = len(_ENTRY).to_bytes(8, "little") + _ENTRY
CASES = {
    "an empty tensor with axes that no array can have": (
        *("safetensors", lambda: {"a.safetensors": EMPTY_TENSOR}),
        "no readable .safetensors file",
    ),
    "a setting that no float can hold": (
        *("config", lambda: {"config.json": HUGE_NUMBER}),
        "algorithm.ppo.discount=1000",
    ),
    "a header that states a terabyte": (
        *("dppo_npz", lambda: npz(states=damage.npy_lie("(1000000000000,)"))),
        "states is damaged",
    ),
    "a header with a negative shape": (
        *("dppo_npz", lambda: npz(states=damage.npy_lie("(-5, -2)"))),
        "states is damaged",
    ),
    "bytes that are no array": (
        *("dppo_npz", lambda: npz(actions=b"no array")),
        "actions is damaged",
    ),
    "zeros that fill the memory": (
        *("dppo_npz", lambda: npz(states=np.zeros((2_000_000, 2)))),
        "states would take .* GB",
    ),
    "an archive in whose list a name is no text": (
        *("dppo_npz", npz_not_utf8),
        "train.npz is not a readable .*utf-8",
    ),
    "a checkpoint in whose list a name is no text": (
        *("torch", lambda: torch_not_utf8(1)),
        "a.pt is not a readable .*utf-8",
    ),
    "a checkpoint of which an entry is named by no text": (
        *("torch", lambda: torch_not_utf8(0)),
        "a.pt is not a readable .*utf-8",
    ),
    "an array without axes": (
        *("dppo_npz", lambda: npz(actions=np.float32(1))),
        "must have 2 axes, the first of length 0",
    ),
    "rows without numbers": (
        *("dppo_npz", lambda: npz(actions=np.zeros((5, 0)))),
        "rows without numbers",
    ),
    "lengths whose sum overflows to the right one": (
        *("dppo_npz", lambda: npz(traj_lengths=np.array([2**63, 2**63, 5], "u8"))),
        "length",
    ),
    "lengths of a type whose sums are no indices": (
        *("dppo_npz", lambda: npz(traj_lengths=np.array([3, 2], "u8"))),
        "",
    ),
    "a link to another file": (
        *("d4rl", lambda: hdf5(demonstrations.d4rl(), "rewards", outside)),
        "rewards is a link to /etc/passwd",
    ),
    "numbers in another file": (
        *("d4rl", lambda: hdf5(demonstrations.d4rl(), "observations", in_other_file)),
        "observations has its numbers in another file",
    ),
    "a table that was never written": (
        *("d4rl", lambda: hdf5(demonstrations.d4rl(), "actions", endless)),
        "actions would take 20 GB",
    ),
    "a missing table beside a name that is no text": (
        *("d4rl", lambda: hdf5(demonstrations.d4rl(), "actions", not_text)),
        r"holds the name b'actions_.xff', which is not text",
    ),
    "a file without data whose name is no text": (
        *("robomimic", lambda: hdf5(demonstrations.robomimic(), "data", not_text)),
        r"data.hdf5 holds the name b'data_.xff', which is not text",
    ),
    "an episode whose name is no text": (
        *(
            "robomimic",
            lambda: hdf5(demonstrations.robomimic(), "data/demo_0", not_text),
        ),
        r"data holds the name b'demo_0_.xff', which is not text",
    ),
    "a subset whose name is no text": (
        *(
            "robomimic",
            lambda: hdf5(demonstrations.robomimic(), "mask/train", not_text),
        ),
        r"mask holds the name b'train_.xff', which is not text",
    ),
    "a table of Minari whose name is no text": (
        "minari",
        lambda: in_minari("x", not_text),
        r"holds the name b'x_.xff', which is not text",
    ),
    "a link to itself": (
        *("robomimic", lambda: hdf5(demonstrations.robomimic(), "data", looping)),
        "data is damaged",
    ),
    "episodes in another file": (
        *("robomimic", lambda: hdf5(demonstrations.robomimic(), "data", outside)),
        "data is a link to /etc/passwd",
    ),
    "a subset that lists no names": (
        *("robomimic", lambda: hdf5(demonstrations.robomimic(), "mask/train", endless)),
        "mask/train must be a list of names",
    ),
    "metadata in a pipe": (
        "minari",
        lambda: demonstrations.minari() | {"set/data/metadata.json": os.mkfifo},
        "no such file",
    ),
    "a pipe": ("d4rl", lambda: {"data.hdf5": os.mkfifo}, "is no file"),
    "a split of a trillion episodes": (
        *("lerobot", lambda: info(splits={"train": "0:1000000000000"})),
        "",
    ),
    "splits that are no dictionary": ("lerobot", lambda: info(splits=3), "train"),
    "a column without a description": (
        *("lerobot", lambda: info(features=dict.fromkeys(demonstrations.COLUMNS))),
        "",
    ),
    "episodes that are numbered by fractions": (
        *("lerobot", lambda: columns(episode_index=[0.5] * 5)),
        "episode_index .* whole numbers",
    ),
    "two rewards for a step": (
        *("lerobot", lambda: columns(**{"next.reward": [[1.0, 2.0]] * 5})),
        r"next.reward \(5, 2\) must have one entry",
    ),
    "a column whose statistics fit another schema": (
        *("lerobot", lambda: required("action")),
        "file-000.parquet is not a readable Parquet file .Definition level histogram",
    ),
    "files of two tasks": ("lerobot", two_sizes, "2 different sizes"),
    "a number that stands for a billion": (
        *("torch", lambda: repeated(10**9)),
        r"tensor \(1000000000,\) would take 4 GB",
    ),
    "settings in a hundred thousand sections": ("config", lambda: NESTED, "JSON"),
    "a row with a null character": (
        *("metrics", lambda: metrics("iteration,a\n1,\x00\n2,3\n")),
        "line 2",
    ),
    "a cell of a megabyte": (
        *("metrics", lambda: metrics("iteration,a\n1," + "1" * 10**6 + "\n2,3\n")),
        "is damaged .field larger",
    ),
    "an iteration that is no number": (
        *("metrics", lambda: metrics("iteration,a\nnan,1\n2,3\n")),
        "line 2, has iteration nan",
    ),
    "a literal of a thousand brackets": (
        *("overrides", lambda: settings("model.network.hidden_sizes=" + "(" * 1000)),
        "",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_damage_that_was_found_is_refused_or_harmless(case, tmp_path, monkeypatch):
    monkeypatch.setattr(expansion, "ALWAYS", 2**20)
    reader, make, said = CASES[case]
    if READERS[reader].package:
        pytest.importorskip(READERS[reader].package)
    damage.write(tmp_path / "case", make())
    if not said:
        READERS[reader].read(tmp_path / "case")
        return
    with pytest.raises(SettingsError, match=said) as error:
        READERS[reader].read(tmp_path / "case")
    assert "\n" not in str(error.value)


def test_little_may_expand_to_much_and_much_by_little():
    """Both limits must be exceeded."""
    expansion.check_expansion(expansion.ALWAYS, 0, "it")
    expansion.check_expansion(2 * expansion.ALWAYS, expansion.ALWAYS, "it")
    stored = expansion.ALWAYS // expansion.FACTOR
    expansion.check_expansion(expansion.ALWAYS, stored, "it")
    with pytest.raises(SettingsError, match="it would take 1.07.* GB"):
        expansion.check_expansion(expansion.ALWAYS + 1, stored - 1, "it")


def test_a_message_is_one_line_whatever_it_quotes():
    assert str(SettingsError("lacks a\nb; restore it")) == "lacks a\\nb; restore it"

"""Files of torch: round trips, and reading without executing anything."""

import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from dppo_jax.interop import load_torch_file, save_torch_file

TREE = {
    "numbers": [0, 1, -1, 255, 70_000, -(2**40), 0.5, True, False, None],
    "text": ("", "weight", "Größe"),
    "empty": [{}, [], ()],
    "float": np.arange(6, dtype=np.float32).reshape(2, 3),
    "transposed": np.arange(6, dtype=np.int64).reshape(2, 3).T,
    "double": np.array(1 / 3),
    "none": np.zeros((0, 3), np.float16),
    "big-endian": np.arange(3, dtype=">i4"),
    "flags": np.array([True, False]),
}


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def numbers(*values):
    return b"(" + b"".join(b"K" + bytes([value]) for value in values) + b"t"


def tensor(offset, shape, strides, key="0", size=12):
    """Pickle instructions, as torch writes them, for a float32 tensor in `key`."""
    storage = text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    storage = b"(" + storage + b"K" + bytes([size]) + b"tQ"
    layout = b"K" + bytes([offset]) + numbers(*shape) + numbers(*strides)
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + layout + hooks + b"tR"


def write(path, instructions, *, folder="state_1", **records):
    """Write a file like torch's with any instructions; storage 0 holds 0 to 11."""
    records = {"data.pkl": b"\x80\x02" + instructions + b"."} | records
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(f"{folder}/{name}", content)
        archive.writestr(f"{folder}/data/0", np.arange(12, dtype="<f4").tobytes())
    return path


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        assert_same(list(one.values()), list(other.values()))
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other):
            assert_same(a, b)
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other)
        assert one.dtype.newbyteorder("=") == other.dtype.newbyteorder("=")
    else:
        assert one == other


def test_a_round_trip_changes_nothing(tmp_path):
    save_torch_file(tmp_path / "tree.pt", TREE)
    assert_same(load_torch_file(tmp_path / "tree.pt"), TREE)
    assert os.listdir(tmp_path) == ["tree.pt"]


def test_the_same_tree_gives_the_same_bytes_and_a_shared_array_is_stored_once(tmp_path):
    shared = np.ones(1000, np.float32)
    for name in ("a", "b"):
        save_torch_file(tmp_path / name, {"network": shared, "actor": shared})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with zipfile.ZipFile(tmp_path / "a") as archive:
        assert [n for n in archive.namelist() if "/data/" in n] == ["archive/data/0"]
    loaded = load_torch_file(tmp_path / "a")
    assert np.shares_memory(loaded["network"], loaded["actor"])


def test_torch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    save_torch_file(tmp_path / "tree.pt", TREE)
    loaded = torch.load(tmp_path / "tree.pt", weights_only=True)
    for name, value in TREE.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(loaded[name].numpy(), value)
        else:
            assert loaded[name] == value
    torch.save(loaded, tmp_path / "again.pt")
    assert_same(load_torch_file(tmp_path / "again.pt"), TREE)


@pytest.mark.parametrize(
    "offset, shape, strides, expected",
    [
        (0, (3, 4), (4, 1), np.arange(12).reshape(3, 4)),
        (0, (4, 3), (1, 4), np.arange(12).reshape(3, 4).T),
        (5, (2, 2), (4, 1), [[5, 6], [9, 10]]),
        (2, (3, 2), (0, 1), [[2, 3]] * 3),
        (7, (), (), 7),
        (0, (0, 3), (3, 1), np.zeros((0, 3))),
    ],
)
def test_a_tensor_is_a_view_of_its_storage(tmp_path, offset, shape, strides, expected):
    path = write(tmp_path / "a.pt", tensor(offset, shape, strides))
    array = load_torch_file(path)
    np.testing.assert_array_equal(array, expected)
    assert array.dtype == np.float32 and not array.flags.writeable


def test_the_byte_order_is_that_of_the_file(tmp_path):
    path = write(tmp_path / "a.pt", tensor(0, (12,), (1,)), byteorder=b"big")
    swapped = np.arange(12, dtype=np.float32).byteswap()
    np.testing.assert_array_equal(load_torch_file(path), swapped)


@pytest.mark.parametrize(
    "offset, shape, strides, size",
    [(1, (3, 4), (4, 1), 12), (0, (13,), (1,), 12), (12, (), (), 12)]
    + [(0, (2, 2), (1,), 12), (0, (2,), (1,), 11)],
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, offset, shape, strides, size):
    path = write(tmp_path / "a.pt", tensor(offset, shape, strides, size=size))
    with pytest.raises(ValueError, match="a.pt is damaged .*copy it again"):
        load_torch_file(path)


class Harmful:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_is_executed(tmp_path):
    harmful = {"epoch": 1, "model": Harmful(tmp_path / "harm")}
    path = write(tmp_path / "a.pt", pickle.dumps(harmful, protocol=2)[2:-1])
    with pytest.raises(ValueError, match=r"holds \w+\.mkdir; read it with torch.load"):
        load_torch_file(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "content, named",
    [
        (pickle.dumps(np.ones(2), protocol=2), r"numpy.*_reconstruct"),
        (pickle.dumps({1, 2}, protocol=2), "__builtin__.set"),
        (pickle.dumps([1], protocol=4), "the instruction FRAME"),
        (b"ctorch\nBFloat16Storage\n.", "torch.BFloat16Storage"),
        (b"ctorch.nn.modules.linear\nLinear\n)R.", "torch.nn.modules.linear.Linear"),
    ],
)
def test_other_objects_than_weights_are_refused_by_name(tmp_path, content, named):
    with pytest.raises(ValueError, match=f"a.pt holds {named}; read it with"):
        load_torch_file(write(tmp_path / "a.pt", content))


@pytest.mark.parametrize(
    "records, message",
    [
        (dict(version=b"99\n"), "format version '99'"),
        (dict(byteorder=b"middle"), "byte order 'middle'"),
        ({"other/data.pkl": b""}, "a zip file, but not one of torch.save"),
    ],
)
def test_other_formats_are_refused(tmp_path, records, message):
    with pytest.raises(ValueError, match=message):
        load_torch_file(write(tmp_path / "a.pt", b"}", **records))


def test_files_that_are_missing_old_or_cut_are_named_with_a_cure(tmp_path):
    with pytest.raises(ValueError, match="nothing.pt does not exist"):
        load_torch_file(tmp_path / "nothing.pt")
    old = tmp_path / "old.pt"
    old.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2))
    with pytest.raises(ValueError, match="old.pt .*older than 1.6"):
        load_torch_file(old)
    save_torch_file(tmp_path / "a.pt", TREE)
    content = (tmp_path / "a.pt").read_bytes()
    for size in range(0, len(content), 97):
        (tmp_path / "cut.pt").write_bytes(content[:size])
        with pytest.raises(ValueError, match="cut.pt is not a readable file"):
            load_torch_file(tmp_path / "cut.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of damaged strings
def test_damaged_instructions_give_an_error_or_a_tree_but_nothing_else(tmp_path):
    sound = b"}(" + text("a") + tensor(0, (3, 4), (4, 1)) + text("b") + b"K\x01u"
    random = np.random.default_rng(0)
    outcomes = {"tree": 0, "error": 0}
    for _ in range(500):
        damaged = bytearray(sound)
        for place in random.integers(0, len(damaged), 2):
            damaged[place] = random.integers(0, 256)
        outcomes[outcome_of(write(tmp_path / "a.pt", bytes(damaged)))] += 1
    assert outcomes["error"] > 300


def outcome_of(file):
    try:
        load_torch_file(file)
    except ValueError:
        return "error"
    return "tree"


@pytest.mark.parametrize("leaf", [object(), 1j, np.ones(2, complex), np.array(["a"])])
def test_types_without_a_torch_tensor_are_not_written(tmp_path, leaf):
    with pytest.raises(ValueError, match="object|complex|type <U1"):
        save_torch_file(tmp_path / "a.pt", {"leaf": leaf})
    assert os.listdir(tmp_path) == []

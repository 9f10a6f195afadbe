"""Reading .safetensors files, and refusing those that do not keep to the format."""

import json

import numpy as np
import pytest

from dppo_jax.interop import load_safetensors
from tests.lerobot_policies import save_safetensors

ARRAYS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "double": np.array([1 / 3]),
    "half": np.array([0.5, -2.0], np.float16),
    "number": np.array(7),
    "none": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False]),
}
FLOAT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path, header, content=bytes(8)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


def test_arrays_are_read_as_they_were_written(tmp_path):
    found = load_safetensors(save_safetensors(tmp_path / "a.safetensors", ARRAYS))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def test_bfloat16_is_the_upper_half_of_float32(tmp_path):
    """1.0 is 0x3f80, -2.5 is 0xc020."""
    halves = {"a": np.array([0x3F80, 0xC020], np.uint16), "b": np.uint16(0x3F80)}
    halves["b"] = halves["b"].reshape(())
    found = load_safetensors(save_safetensors(tmp_path / "a.safetensors", halves))
    np.testing.assert_array_equal(found["a"], np.float32([1.0, -2.5]))
    assert found["b"] == 1.0 and found["b"].shape == ()


def test_the_order_in_the_header_is_free(tmp_path):
    second = {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}
    first = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    path = write(tmp_path / "a", {"b": second, "a": first}, bytes(range(8)))
    found = load_safetensors(path)
    assert found["a"].tolist() == [0, 1, 2, 3] and found["b"].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(
    "header, said",
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[]", "no JSON object"),
        (b'{"a": 1, "a": 2}', "a name occurs twice"),
        ({"a": 1}, "a lacks one of dtype"),
        ({"a": FLOAT | {"dtype": "F8"}}, "unknown type 'F8'"),
        ({"a": FLOAT | {"dtype": ["F32"]}}, "unknown type"),
        ({"a": FLOAT | {"shape": [-2]}}, r"shape=\[-2\]"),
        ({"a": FLOAT | {"shape": [True, 2]}}, "shape="),
        ({"a": FLOAT | {"shape": 2}}, "shape=2"),
        ({"a": FLOAT | {"shape": [3]}}, "has 8 bytes"),
        ({"a": FLOAT | {"data_offsets": [0, 8, 9]}}, "data_offsets="),
        ({"a": FLOAT | {"data_offsets": [8, 0]}}, "starts at byte 8"),
        ({"a": FLOAT | {"data_offsets": [4, 12]}}, "starts at byte 4, not at 0"),
        ({"a": FLOAT, "b": FLOAT}, "b starts at byte 0, not at 8"),
        ({"a": FLOAT | {"shape": [3], "data_offsets": [0, 12]}}, "it ends inside a"),
        ({"a": FLOAT | {"shape": [1], "data_offsets": [0, 4]}}, "4 bytes belong to no"),
        ({}, "8 bytes belong to no tensor"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, header, said):
    path = write(tmp_path / "a.safetensors", header)
    with pytest.raises(ValueError, match=f"a.safetensors is no readable .*{said}"):
        load_safetensors(path)


def test_a_file_that_ends_early_or_does_not_exist_is_refused(tmp_path):
    path = save_safetensors(tmp_path / "a.safetensors", ARRAYS)
    content = path.read_bytes()
    for length in (0, 7, 20):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="ends inside its header"):
            load_safetensors(path)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="it ends inside"):
        load_safetensors(path)
    with pytest.raises(ValueError, match="b.safetensors does not exist"):
        load_safetensors(tmp_path / "b.safetensors")

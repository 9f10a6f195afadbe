"""Readers of policies: weights of PyTorch, safetensors, and LeRobot."""

import functools
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st

from dppo_jax.interop import (
    load_lerobot_policy,
    load_reference_checkpoint,
    load_torch_file,
    save_reference_checkpoint,
    save_torch_file,
)
from dppo_jax.interop.reference_checkpoint import ReferenceCheckpoint
from dppo_jax.interop.safetensors_file import load_safetensors, save_safetensors
from dppo_jax.policies import PolicyParams
from tests import damage, lerobot_policies, tiny
from tests.damage import Folder
from tests.readers.demonstrations import ARRAYS
from tests.readers.kinds import Reader, damaged, either, made

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


STORAGE = _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu")
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
    b"(" + STORAGE + b"K\x06tQ",
    b"(" + STORAGE + b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7ftQ",
    *(b"\x8a\x05\x00\x00\x00\x00\x10", b"G" + struct.pack(">d", np.nan), b"I01\n"),
    *(
        b"K\x00(K\x02K\x03t(K\x03K\x01t\x89",
        b"K\x00(\x8a\x06\x00\x00\x00\x00\x00\x01tK",
    ),
    b"(ctorch._utils\n_rebuild_tensor_v2\n(" + b"(" + STORAGE + b"K\x06tQ",
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
            array = draw(st.sampled_from(ARRAYS))
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


READERS = {
    "torch": Reader(
        either(lambda: damaged(torch), torch_cases),
        lambda folder: load_torch_file(folder / "a.pt"),
        torch,
    ),
    "reference": Reader(
        either(lambda: damaged(reference), reference_cases),
        lambda folder: load_reference_checkpoint(folder / "a.pt"),
        reference,
    ),
    "safetensors": Reader(
        either(lambda: damaged(safetensors), safetensors_cases),
        lambda folder: load_safetensors(folder / "a.safetensors"),
        safetensors,
    ),
    "lerobot_policy": Reader(
        either(lambda: damaged(lerobot_policy), lerobot_policy_cases),
        lambda folder: load_lerobot_policy(folder / "policy"),
        lerobot_policy,
    ),
}

"""The messages between `socket_server.py` and `socket_client.py`.

A message is a head of 13 bytes and a body, in network byte order:

    kind    1 byte     a letter, see below
    step    4 bytes    unsigned; an answer has that of the observation it answers
    length  8 bytes    unsigned, of the body in bytes

    kind  from    body
    D     server  after connecting: JSON with the shape and type of every entry of an
                  observation, the length of an action, and the rate in Hz
    O     client  an observation: the entries of D one after the other, C order
    R     client  nothing; an episode begins
    A     server  an action, float32
    E     server  why an observation was refused, UTF-8

Numbers of arrays are little-endian. Nothing is unpickled, and a length is checked
before anything is read.
"""

import json
import socket
import struct
import time
from typing import NamedTuple

import numpy as np

HEAD = struct.Struct("!cIQ")
DESCRIPTION, OBSERVATION, RESET, ACTION, ERROR = b"D", b"O", b"R", b"A", b"E"
LONGEST_TEXT = 1 << 16


class ProtocolError(ConnectionError):
    """The other side sent what no message begins with, or a wrong length."""


class Message(NamedTuple):
    kind: bytes
    step: int
    body: bytes


class Description(NamedTuple):
    """What a policy reads and returns.

    entries: name -> (shape, type) of every entry of an observation.
    action_dim: numbers of an action.
    rate: control steps per second.
    """

    entries: dict[str, tuple[tuple[int, ...], np.dtype]]
    action_dim: int
    rate: float

    @property
    def obs_bytes(self) -> int:
        sizes = (int(np.prod(shape)) * x.itemsize for shape, x in self.entries.values())
        return sum(sizes)


class Stream:
    """Messages over a connected socket. What was read of one is kept between calls."""

    def __init__(self, conn: socket.socket) -> None:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._conn, self._read = conn, bytearray()

    def send(
        self, kind: bytes, step: int = 0, body: bytes = b"", *, timeout: float
    ) -> None:
        """Send a message whole; TimeoutError if the other side does not take it."""
        self._conn.settimeout(timeout)
        self._conn.sendall(HEAD.pack(kind, step, len(body)) + body)

    def receive(
        self, lengths: dict[bytes, tuple[int, int]], *, deadline: float
    ) -> Message:
        """The next message, whole.

        Args:
            lengths: kind -> the least and the largest length of its body. Other kinds
                and lengths raise ProtocolError.
            deadline: of `time.perf_counter`; then TimeoutError is raised.

        Raises:
            ConnectionError: the other side is gone.
        """
        self._fill(HEAD.size, deadline)
        kind, step, length = HEAD.unpack(self._read[: HEAD.size])
        if kind not in lengths:
            raise ProtocolError(f"a message of the kind {kind!r} is not expected here")
        least, largest = lengths[kind]
        if not least <= length <= largest:
            raise ProtocolError(
                f"a message {kind.decode()} has {length} bytes, not {least} to "
                f"{largest}"
            )
        self._fill(HEAD.size + length, deadline)
        body = bytes(self._read[HEAD.size : HEAD.size + length])
        del self._read[: HEAD.size + length]
        return Message(kind, step, body)

    def _fill(self, count: int, deadline: float) -> None:
        while len(self._read) < count:
            left = deadline - time.perf_counter()
            if left <= 0:
                raise TimeoutError("no message came in time")
            self._conn.settimeout(left)
            part = self._conn.recv(1 << 16)
            if not part:
                raise ConnectionError("the other side closed the connection")
            self._read += part


def describe(about: dict, rate: float) -> bytes:
    """The body of D, of the `policy.json` of an exported policy."""
    entries = {
        name: {"shape": x["shape"][1:], "dtype": x["dtype"]}
        for name, x in about["observation"].items()
    }
    action_dim = about["actions"]["shape"][-1]
    return json.dumps(
        {"observation": entries, "action_dim": action_dim, "rate": rate}
    ).encode()


def read_description(body: bytes) -> Description:
    """Read D; raises ProtocolError if it is none."""
    try:
        about = json.loads(body)
        entries = {
            name: (tuple(map(int, x["shape"])), np.dtype(x["dtype"]).newbyteorder("<"))
            for name, x in about["observation"].items()
        }
        return Description(entries, int(about["action_dim"]), float(about["rate"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"the description cannot be read: {error}") from error


def pack(description: Description, obs: dict[str, np.ndarray]) -> bytes:
    """An observation as bytes; ValueError if an entry has another shape."""
    parts = []
    for name, (shape, dtype) in description.entries.items():
        x = np.asarray(obs[name])
        if x.shape != shape:
            raise ValueError(f"{name} has shape {x.shape}, not {shape}")
        parts.append(x.astype(dtype).tobytes())
    return b"".join(parts)


def unpack(description: Description, body: bytes) -> dict[str, np.ndarray]:
    obs, start = {}, 0
    for name, (shape, dtype) in description.entries.items():
        count = int(np.prod(shape))
        obs[name] = np.frombuffer(body, dtype, count, start).reshape(shape)
        start += count * dtype.itemsize
    return obs

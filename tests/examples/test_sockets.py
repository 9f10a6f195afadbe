"""A policy behind a socket, with clients that behave and clients that do not."""

import contextlib
import importlib
import queue
import re
import socket
import sys
import threading
import time
from typing import NamedTuple

import numpy as np
import pytest

from tests.conftest import REPOSITORY

RATE = 50.0
ABOUT = {
    "observation": {
        "state": {"shape": [2, 3], "dtype": "float32"},
        "rgb": {"shape": [1, 2, 2, 3], "dtype": "uint8"},
    },
    "actions": {"shape": [4, 2], "dtype": "float32"},
}
SEEN = {
    "state": np.float32([1, 2, 3]),
    "rgb": np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
}


@pytest.fixture(scope="module")
def sockets():
    """The modules in `examples/`, imported as programs there import each other."""
    sys.path.insert(0, str(REPOSITORY / "examples"))
    try:
        names = ("protocol", "server", "client")
        yield {name: importlib.import_module(f"socket_{name}") for name in names}
    finally:
        sys.path.remove(str(REPOSITORY / "examples"))


class Policy:
    """Acts by the sum of the state and that of the picture, and counts episodes."""

    about = ABOUT

    def __init__(self):
        self.resets, self.waits = 0, 0.0

    def reset(self):
        self.resets += 1

    def __call__(self, obs):
        if not np.isfinite(obs["state"]).all():
            raise ValueError("state has entries that are not finite")
        time.sleep(self.waits)
        return np.float32([obs["state"].sum(), obs["rgb"].sum()])


class Served(NamedTuple):
    policy: Policy
    address: tuple
    said: queue.SimpleQueue


@pytest.fixture
def served(sockets):
    """A server in a thread."""
    policy, said = Policy(), queue.SimpleQueue()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(
            target=sockets["server"].serve,
            args=(policy, listener),
            kwargs=dict(rate=RATE, timeout=0.5, tell=said.put),
            daemon=True,
        )
        thread.start()
        yield Served(policy, listener.getsockname(), said)
        # Closing alone does not wake a thread that accepts.
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert not thread.is_alive()


def connected(sockets, address):
    return contextlib.closing(sockets["client"].RemotePolicy(address))


def soon():
    return time.perf_counter() + 5


def test_observations_arrive_whole_and_actions_return(sockets, served):
    policy, address, _ = served
    with connected(sockets, address) as remote:
        assert remote.description.rate == RATE and remote.description.action_dim == 2
        assert list(remote(SEEN, deadline=soon())) == [6, 66]
        remote.reset()
        with pytest.raises(ValueError, match="state has entries that are not finite"):
            remote({**SEEN, "state": SEEN["state"] * np.nan}, deadline=soon())
        with pytest.raises(ValueError, match=r"state has shape \(4,\), not \(3,\)"):
            remote({**SEEN, "state": np.zeros(4)}, deadline=soon())
        assert list(remote(SEEN, deadline=soon())) == [6, 66]
    assert policy.resets == 2  # Of the connection, and the one that was asked for.
    said = served.said.get(timeout=5)
    assert said.startswith("127.0.0.1: 2 control steps, ")
    assert said.endswith("ended: the other side closed the connection")


def test_a_late_answer_is_dropped_and_counted(sockets, served):
    policy, address, _ = served
    with connected(sockets, address) as remote:
        policy.waits = 2 / RATE
        assert remote(SEEN, deadline=time.perf_counter() + 0.001) is None
        policy.waits = 0.0
        other = {**SEEN, "state": SEEN["state"] + 1}
        assert list(remote(other, deadline=soon())) == [9, 66]
    said = served.said.get(timeout=5)
    # On a busy machine the other step may be late too.
    assert re.search(r"2 control steps, [12] late \(over 20 ms\)", said)


BAD = {
    "half a message, then gone": (b"O" + bytes(5), "connection|Connection"),
    "half a message, then silent": (b"O" + bytes(5), "silent for 0.5 s"),
    "another kind": (b"X" + bytes(12), "kind b'X' is not expected"),
    "a length that no memory holds": (b"O" + b"\xff" * 12, "bytes, not 24 to 24"),
    "a pickle": (b"\x80\x04\x95" + bytes(20), r"kind b'\\x80' is not expected"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_server_outlives_a_client_that_misbehaves(name, sockets, served):
    sent, ended = BAD[name]
    with socket.create_connection(served.address, timeout=5) as conn:
        conn.sendall(sent)
        if "gone" not in name:
            while conn.recv(1000):  # Until the server closes the connection.
                pass
    assert re.search(f"0 control steps.*ended: .*({ended})", served.said.get(timeout=5))
    with connected(sockets, served.address) as remote:
        assert list(remote(SEEN, deadline=soon())) == [6, 66]


class Robot:
    def __init__(self):
        self.actions, self.stopped = [], False

    def observe(self):
        return SEEN

    def act(self, action):
        self.actions.append(list(action))

    def stop(self):
        self.stopped = True


def test_the_loop_keeps_its_rate_and_stops_the_robot(sockets, served):
    policy, address, _ = served
    control, robot = sockets["client"].control, Robot()
    with connected(sockets, address) as remote:
        began = time.perf_counter()
        control(robot, remote, steps=5, most_late=5)
        assert time.perf_counter() - began >= 4 / RATE
        assert robot.stopped and set(map(tuple, robot.actions)) <= {(6, 66)}
    policy.waits = 0.3
    robot = Robot()
    with connected(sockets, address) as remote:
        with pytest.raises(TimeoutError, match="3 control steps in a row were late"):
            control(robot, remote, steps=50, most_late=2)
    assert robot.stopped and robot.actions == []


def test_the_loop_repeats_the_last_action_while_it_waits(sockets):
    """Of four answers, the second and third are late."""
    client = sockets["client"]
    answers = iter([[1.0], None, None, [2.0]])
    robot = Robot()

    class Remote:
        description = sockets["protocol"].Description({}, 1, 1000.0)

        def reset(self):
            pass

        def __call__(self, obs, *, deadline):
            return next(answers)

    assert client.control(robot, Remote(), steps=4, most_late=2) == 2
    assert robot.actions == [[1.0], [1.0], [1.0], [2.0]] and robot.stopped

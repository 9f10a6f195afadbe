"""The robot's side of `socket_server.py`: a control loop at a fixed rate.

    python examples/socket_client.py --host policy-computer --steps 200

It needs NumPy and `socket_protocol.py` beside this file. Replace `Robot` by yours. Each
control step sends an observation and waits for the action until the period is over. If
none has come, the step is late: the robot repeats its last action, and what comes later
is dropped. After too many late steps in a row, or if the server goes, the robot stops.
"""

import argparse
import socket
import time
from typing import Any

import numpy as np
import socket_protocol as protocol


class Robot:
    """Stands for your robot: it sees zeros, and remembers its actions."""

    def __init__(self, description: protocol.Description) -> None:
        self._entries = description.entries
        self.actions: list[np.ndarray] = []

    def observe(self) -> dict[str, np.ndarray]:
        return {name: np.zeros(*like) for name, like in self._entries.items()}

    def act(self, action: np.ndarray) -> None:
        self.actions.append(action)

    def stop(self) -> None:
        """Bring the robot to rest, without the policy."""


class RemotePolicy:
    """A policy behind a socket.

    Args:
        address: host and port.
        timeout: seconds to wait for the connection.
    """

    def __init__(self, address: tuple[str, int], *, timeout: float = 5.0) -> None:
        self._conn = socket.create_connection(address, timeout=timeout)
        self._stream = protocol.Stream(self._conn)
        lengths = {protocol.DESCRIPTION: (2, protocol.LONGEST_TEXT)}
        deadline = time.perf_counter() + timeout
        body = self._stream.receive(lengths, deadline=deadline).body
        self.description = protocol.read_description(body)
        self._step = 0

    def reset(self) -> None:
        """Begin an episode."""
        timeout = 1 / self.description.rate
        self._stream.send(protocol.RESET, timeout=timeout)

    def __call__(
        self, obs: dict[str, np.ndarray], *, deadline: float
    ) -> np.ndarray | None:
        """The action for an observation; None if it does not come in time.

        Args:
            deadline: of `time.perf_counter`.

        Raises:
            ValueError: the server refuses the observation, and says why.
            ConnectionError, TimeoutError: the server is gone, or takes nothing more.
        """
        self._step += 1
        body = protocol.pack(self.description, obs)
        period = 1 / self.description.rate
        self._stream.send(protocol.OBSERVATION, self._step, body, timeout=period)
        size = 4 * self.description.action_dim
        lengths = {
            protocol.ACTION: (size, size),
            protocol.ERROR: (0, protocol.LONGEST_TEXT),
        }
        while True:
            try:
                message = self._stream.receive(lengths, deadline=deadline)
            except TimeoutError:
                return None
            if message.step != self._step:
                continue  # An answer to a late step.
            if message.kind == protocol.ERROR:
                raise ValueError(message.body.decode(errors="replace"))
            return np.frombuffer(message.body, "<f4")

    def close(self) -> None:
        self._conn.close()


def control(robot: Any, policy: RemotePolicy, *, steps: int, most_late: int) -> int:
    """Run an episode at the rate of the server; returns how many steps were late.

    The robot is stopped whatever ends it.

    Args:
        most_late: so many late steps in a row end the episode with a TimeoutError.
    """
    period = 1 / policy.description.rate
    last, late, in_a_row = None, 0, 0
    policy.reset()
    begins = time.perf_counter()
    try:
        for _ in range(steps):
            action = policy(robot.observe(), deadline=begins + period)
            late, in_a_row = (late + 1, in_a_row + 1) if action is None else (late, 0)
            if in_a_row > most_late:
                raise TimeoutError(f"{in_a_row} control steps in a row were late")
            last = last if action is None else action
            if last is not None:
                robot.act(last)
            begins = max(begins + period, time.perf_counter())
            time.sleep(max(0.0, begins - time.perf_counter()))
    finally:
        robot.stop()
    return late


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5557)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--most-late", type=int, default=3, help="in a row")
    words = parser.parse_args()
    policy = RemotePolicy((words.host, words.port))
    robot = Robot(policy.description)
    began = time.perf_counter()
    late = control(robot, policy, steps=words.steps, most_late=words.most_late)
    last = robot.actions[-1].tolist() if robot.actions else "none"
    print(
        f"{words.steps} control steps in {time.perf_counter() - began:.2f} s, {late} "
        f"late; the last action is {last}"
    )
    policy.close()


if __name__ == "__main__":
    main()

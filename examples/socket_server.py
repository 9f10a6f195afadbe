"""An exported policy behind a TCP socket, for a robot whose computer has no JAX.

    python -m experiments.deploy runs/can_fast/finetune can_policy
    python examples/socket_server.py can_policy --rate 20
    python examples/socket_client.py --steps 200

It needs the folder that `experiments.deploy` wrote, `socket_protocol.py` beside this
file, and JAX with flatbuffers (or onnxruntime, `--runtime onnx`). One client at a time
is served. One that disconnects, falls silent or sends what it should not loses its
connection, and the server waits for the next. After each client it prints how many
control steps were late: they took longer than a control period from the observation to
the action. There is no encryption and no password, so listen only where you trust all.
"""

import argparse
import importlib.util
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import socket_protocol as protocol


class Served(NamedTuple):
    """What happened while a client was connected.

    steps, late: control steps, and those that took longer than a period.
    slowest: seconds.
    ended: why the connection ended.
    """

    steps: int
    late: int
    slowest: float
    ended: str


def load(folder: str, runtime: str) -> Any:
    """The policy in the folder, by the loader that lies beside it."""
    path = Path(folder) / "exported_policy.py"
    spec = importlib.util.spec_from_file_location("exported_policy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ExportedPolicy(folder, runtime=runtime)


def serve_client(
    policy: Any, conn: socket.socket, *, rate: float, timeout: float
) -> Served:
    """Answer the observations of one client until it goes; raises nothing of it."""
    body = protocol.describe(policy.about, rate)
    description = protocol.read_description(body)
    size = description.obs_bytes
    lengths = {protocol.OBSERVATION: (size, size), protocol.RESET: (0, 0)}
    steps, late, slowest = 0, 0, 0.0
    policy.reset()
    try:
        stream = protocol.Stream(conn)
        stream.send(protocol.DESCRIPTION, body=body, timeout=timeout)
        while True:
            deadline = time.perf_counter() + timeout
            message = stream.receive(lengths, deadline=deadline)
            began = time.perf_counter()
            if message.kind == protocol.RESET:
                policy.reset()
                continue
            try:
                action = policy(protocol.unpack(description, message.body))
            except ValueError as error:  # For example a number that is not finite.
                text = str(error).encode()[: protocol.LONGEST_TEXT]
                stream.send(protocol.ERROR, message.step, text, timeout=timeout)
                continue
            answer = action.astype("<f4").tobytes()
            stream.send(protocol.ACTION, message.step, answer, timeout=timeout)
            taken = time.perf_counter() - began
            steps, late = steps + 1, late + (taken > 1 / rate)
            slowest = max(slowest, taken)
    except TimeoutError:
        ended = f"silent for {timeout:g} s"
    except OSError as error:
        ended = str(error)
    return Served(steps, late, slowest, ended)


def serve(
    policy: Any,
    listener: socket.socket,
    *,
    rate: float,
    timeout: float,
    tell: Callable[[str], Any] = print,
) -> None:
    """Serve one client after the other, until the listener is closed."""
    while True:
        try:
            conn, address = listener.accept()
        except OSError:
            return
        with conn:
            served = serve_client(policy, conn, rate=rate, timeout=timeout)
        tell(
            f"{address[0]}: {served.steps} control steps, {served.late} late (over "
            f"{1000 / rate:g} ms), the slowest {1000 * served.slowest:.1f} ms; ended: "
            f"{served.ended}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: all networks")
    parser.add_argument("--port", type=int, default=5557)
    parser.add_argument("--rate", type=float, required=True, help="steps per second")
    parser.add_argument("--timeout", type=float, default=10.0, help="s of silence")
    parser.add_argument("--runtime", default="jax", choices=("jax", "onnx"))
    words = parser.parse_args()
    if words.rate <= 0 or words.timeout <= 0:
        parser.error("--rate and --timeout must be positive")
    policy = load(words.folder, words.runtime)
    with socket.create_server((words.host, words.port)) as listener:
        print(f"listening on {words.host}:{words.port}", flush=True)
        try:
            serve(policy, listener, rate=words.rate, timeout=words.timeout)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()

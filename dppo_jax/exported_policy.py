"""Run a policy that `python -m experiments.deploy` has written.

It needs NumPy, and JAX with flatbuffers; or onnxruntime instead of these, if the folder
has a policy.onnx. Copy the whole folder to the robot.

    policy = ExportedPolicy("runs/can/exported")
    policy.reset()
    while running:
        robot.send(policy(robot.observe()))

As a program it prints the actions of one chunk, for the middle of all observations:

    python exported_policy.py
    python exported_policy.py . onnx
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

# (seed, entries [To, ...] of an observation) -> actions [n, Da].
Program = Callable[[int, Mapping[str, np.ndarray]], Any]


class ExportedPolicy:
    """Receding-horizon control by an exported policy: one action per call.

    It keeps the history of observations and the rest of the chunk. It compiles when it
    is made, so that no control step waits for it.

    Args:
        folder: what `experiments.deploy` has written; None: that of this file.
        executed: actions of a chunk that are executed before the next one is sampled;
            None: as in training.
        seed: of the random numbers; the same seed gives the same actions.
        runtime: "jax", or "onnx" to run `policy.onnx` in one thread of onnxruntime. The
            two draw other random numbers from a seed.
    """

    def __init__(
        self,
        folder: str | None = None,
        *,
        executed: int | None = None,
        seed: int = 0,
        runtime: str = "jax",
    ) -> None:
        path = Path(__file__).parent if folder is None else Path(folder)
        self.about = _read(path / "policy.json", json.loads)
        load = {"jax": _load_stablehlo, "onnx": _load_onnx}.get(runtime)
        if load is None:
            raise ValueError(f"runtime={runtime!r} must be 'jax' or 'onnx'.")
        self._call = load(path, self.about)
        length = self.about["actions"]["shape"][0]
        if executed is None:
            executed = min(self.about.get("executed") or length, length)
        self.executed = executed
        if not 1 <= self.executed <= length:
            raise ValueError(f"executed={executed} must lie between 1 and {length}.")
        self._seeds = np.random.default_rng(seed)
        self._history: dict[str, np.ndarray] = {}
        self._plan: list[np.ndarray] = []
        self.chunk(
            {
                name: np.zeros(x["shape"], x["dtype"])
                for name, x in self.about["observation"].items()
            },
            0,
        )

    def reset(self) -> None:
        """Begin an episode: forget observations and planned actions."""
        self._history, self._plan = {}, []

    def __call__(self, obs: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
        """The action [Da] for the newest observation, both in the units of the task.

        Args:
            obs: [Do], or a mapping with `state` [Do] and, for policies that see, `rgb`
                [H, W, C] uint8.
        """
        given = obs if isinstance(obs, Mapping) else {"state": obs}
        entries = {
            name: _checked(name, given, x)
            for name, x in self.about["observation"].items()
        }
        for name, newest in entries.items():
            length = self.about["observation"][name]["shape"][0]
            # The first observation of an episode fills the history, as in training.
            seen = self._history.get(name, np.repeat(newest[None], length, axis=0))
            self._history[name] = np.concatenate([seen[1:], newest[None]])
        if not self._plan:
            seed = int(self._seeds.integers(2**32))
            self._plan = list(self.chunk(self._history, seed)[: self.executed])
        return self._plan.pop(0)

    def chunk(self, obs: Mapping[str, np.ndarray], seed: int) -> np.ndarray:
        """The chunk of actions [n, Da] for entries [To, ...] of an observation."""
        return np.asarray(self._call(seed, dict(obs)))


def _read(path: Path, parse: Callable[[bytes], Any]) -> Any:
    """What `parse` makes of a file; ValueError if it is missing or damaged."""
    try:
        return parse(path.read_bytes())
    except Exception as error:  # JAX raises many kinds for damaged programs.
        reason = "is damaged" if path.is_file() else "is missing"
        raise ValueError(
            f"{path} {reason} ({type(error).__name__}: {error}); copy the whole folder "
            "that experiments.deploy wrote again."
        ) from error


def _load_stablehlo(path: Path, about: dict) -> Program:
    import jax
    from jax import export

    def deserialize(content: bytes) -> Any:
        return export.deserialize(bytearray(content))

    call = jax.jit(_read(path / "policy.stablehlo", deserialize).call)
    return lambda seed, obs: call(np.uint32(seed), obs)


def _load_onnx(path: Path, about: dict) -> Program:
    if "onnx" not in about:
        raise ValueError(f"{path} has no policy.onnx; export with --onnx.")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        path / "policy.onnx", options, providers=["CPUExecutionProvider"]
    )
    noise = about["onnx"]["noise"]

    def call(seed: int, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        rng = np.random.default_rng(seed)
        drawn = {
            name: rng.standard_normal(shape).astype(np.float32)
            for name, shape in noise.items()
        }
        return session.run(["actions"], {**drawn, **obs})[0]

    return call


def _checked(name: str, given: Mapping[str, np.ndarray], like: dict) -> np.ndarray:
    """An entry of an observation, with its type; ValueError if it cannot be read."""
    if name not in given:
        raise ValueError(f"the observation lacks {name}.")
    found, shape = np.asarray(given[name]), like["shape"][1:]
    if found.shape != tuple(shape):
        raise ValueError(f"{name} has shape {found.shape}, not {shape}.")
    if like["dtype"] == "uint8" and found.dtype != np.uint8:
        raise ValueError(f"{name} has type {found.dtype}; pass uint8, 0 to 255.")
    if not np.isfinite(found).all():
        raise ValueError(f"{name} has entries that are not finite: {found}")
    return found.astype(like["dtype"])


if __name__ == "__main__":
    policy = ExportedPolicy(*sys.argv[1:2], runtime=(*sys.argv[2:], "jax")[0])
    bounds = policy.about["bounds"]
    middle = {
        name: np.zeros(x["shape"][1:], x["dtype"])
        for name, x in policy.about["observation"].items()
    }
    middle["state"] += np.float32(np.add(bounds["obs_min"], bounds["obs_max"]) / 2)
    print("observation", {name: list(x.shape) for name, x in middle.items()})
    for _ in range(policy.executed):
        print("action", policy(middle).tolist())

"""The host side of `host_vec_env`: episodes of Gymnasium environments, in NumPy.

A process holds a group of environments and returns results once per action chunk.
Chunks, histories and time limits work as in `dppo_jax.envs.wrappers`.
"""

import functools
import multiprocessing
import signal
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from dppo_jax.envs.quarantine import LARGEST
from dppo_jax.errors import SettingsError


class Plan(NamedTuple):
    """How to make an environment and run its episodes.

    make: () -> one environment; must be picklable.
    obs_keys: entries of a dictionary observation to concatenate; empty: all.
    metrics: entries of `info` to report.
    trace: those of them to report at every control step.
    obs_size, action_shape: Do, and the shape of one action.
    chunk, history: Ta, To.
    max_steps: control steps until the time limit; None: no time limit.
    limit_terminates: whether the time limit terminates an episode or truncates it.
    action_range: lowest and highest action.
    """

    make: Callable[[], gymnasium.Env]
    obs_keys: tuple[str, ...]
    metrics: tuple[str, ...]
    trace: tuple[str, ...]
    obs_size: int
    action_shape: tuple[int, ...]
    chunk: int
    history: int
    max_steps: int | None
    limit_terminates: bool
    action_range: tuple[np.ndarray, np.ndarray]


def flat_observation(
    obs: Any, keys: tuple[str, ...], *, size: int | None = None
) -> np.ndarray:
    """Convert an observation to [Do] float32; concatenate entries of a dictionary.

    Raises:
        SettingsError: Do is not `size`, or the observation is no dictionary with
            `keys`.
    """
    if keys and not (isinstance(obs, Mapping) and set(keys) <= set(obs)):
        found = sorted(obs) if isinstance(obs, Mapping) else type(obs).__name__
        raise SettingsError(
            f"the environment returned the observation {found}, but its "
            f"observation_space is a dictionary with {', '.join(keys)}; return one."
        )
    parts = [obs[key] for key in keys] if keys else [obs]
    try:
        flat = np.concatenate([np.asarray(x, np.float32).reshape(-1) for x in parts])
    except (TypeError, ValueError):
        raise SettingsError(
            f"the environment returned the observation {obs!r:.60}, which is no array "
            "of numbers."
        ) from None
    if size is not None and flat.size != size:
        raise SettingsError(
            f"the environment returned an observation of {flat.size} numbers, but its "
            f"observation_space has {size}; return as many from every reset and step."
        )
    return flat


def one_number(value: Any, name: str) -> float:
    """Convert a number, or an array of one number such as [1.0], to a float.

    Raises:
        SettingsError: it is something else.
    """
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise SettingsError(
            f"the environment returned the {name} {value!r:.60}; it must be one number."
        )
    return float(array.item())


def is_sound(x: Any) -> bool:
    """Whether all entries are finite and not exploded."""
    return bool((np.abs(x) <= LARGEST).all())


def scalars(info: Mapping[str, Any]) -> dict[str, float]:
    """Return the entries of an `info` that are single numbers."""
    return {
        name: float(np.asarray(value).item())
        for name, value in info.items()
        if isinstance(name, str)
        and isinstance(value, (bool, int, float, np.bool_, np.number, np.ndarray))
        and np.size(value) == 1
        and np.asarray(value).dtype.kind in "biuf"
    }


class Episode:
    """One environment and its running episode."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.env = plan.make()
        self.history = np.zeros((plan.history, plan.obs_size), np.float32)
        self.count = 0
        self.metrics: dict[str, float] = {}

    def reset(self, seed: int | None = None) -> None:
        """Start an episode; without a seed, the environment's generator continues."""
        obs, _ = self.env.reset(seed=seed)
        seen = self._flat(obs)
        self.history[:] = np.where(np.abs(seen) <= LARGEST, seen, 0)
        self.count = 0
        # Not every step reports every entry: missing ones keep their last value, or 0.
        self.metrics = dict.fromkeys(self.plan.metrics, 0.0)

    def step(self, chunk: np.ndarray) -> dict[str, Any]:
        """Execute a chunk [Ta, Da]; if the episode ends, skip the rest and reset.

        Returns:
            This environment's row of the results of `Group`.
        """
        plan = self.plan
        reward, terminated, truncated, diverged = 0.0, False, False, False
        trace = np.zeros((plan.chunk, len(plan.trace)), np.float32)
        for t, action in enumerate(chunk):
            if not (terminated or truncated):
                earned, terminated, truncated, diverged = self._control_step(action)
                reward += earned
            trace[t] = [self.metrics[name] for name in plan.trace]
        row = dict(
            next_obs=self.history.copy(),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            diverged=diverged,
            length=self.count,
            metrics=np.array([self.metrics[k] for k in plan.metrics], np.float32),
            trace=trace,
        )
        if terminated or truncated:
            self.reset()
        return row | dict(obs=self.history.copy())

    def _control_step(self, action: np.ndarray) -> tuple[float, bool, bool, bool]:
        """Return the reward, and whether it terminated, truncated, or diverged."""
        plan, space = self.plan, self.env.action_space
        action = action.reshape(space.shape).astype(space.dtype)
        obs, earned, terminated, truncated, info = self.env.step(action)
        self.count += 1
        seen, reward = self._flat(obs), one_number(earned, "reward")
        found = scalars(info)
        diverged = not (is_sound(seen) and is_sound(reward))
        if diverged:  # As in `envs.quarantine`.
            seen, reward = self.history[-1].copy(), 0.0
            found = {k: x if is_sound(x) else 0.0 for k, x in found.items()}
        self.history[:-1] = self.history[1:]
        self.history[-1] = seen
        self.metrics |= {k: found[k] for k in plan.metrics if k in found}
        if diverged:
            return reward, False, True, True
        ended = bool(one_number(terminated, "terminated"))
        at_limit = plan.max_steps is not None and self.count >= plan.max_steps
        cut = bool(one_number(truncated, "truncated"))
        if plan.limit_terminates:
            ended = ended or (at_limit and not cut)
        else:
            cut = cut or at_limit
        return reward, ended, cut and not ended, False

    def _flat(self, obs: Any) -> np.ndarray:
        return flat_observation(obs, self.plan.obs_keys, size=self.plan.obs_size)


class Group(gymnasium.Env):
    """The environments `first` to `first + size - 1` of a batch, in one process.

    Its observation holds all results of a step, [G, ...] by name. It never ends,
    because its environments reset themselves.
    """

    def __init__(
        self, plan: Plan, first: int, size: int, rows: int, own_process: bool
    ) -> None:
        """`rows` is G >= `size`, equal in all processes; rows beyond `size` stay 0."""
        self.own_process = own_process
        self.plan, self.first, self.size, self.rows = plan, first, size, rows
        # Make the simulators at the first reset, because Gymnasium makes one more Group
        # only to read its spaces.
        self.episodes: list[Episode] = []
        self.shapes: dict[str, tuple[int, ...]] = dict(
            obs=(plan.history, plan.obs_size),
            next_obs=(plan.history, plan.obs_size),
            reward=(),
            terminated=(),
            truncated=(),
            diverged=(),
            length=(),
            metrics=(len(plan.metrics),),
            trace=(plan.chunk, len(plan.trace)),
        )
        self.observation_space = spaces.Dict(
            {name: _box((rows, *shape)) for name, shape in self.shapes.items()}
        )
        self.action_space = _box((rows, plan.chunk, *plan.action_shape))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Restart all; `options["seeds"]` [B] holds one seed per environment."""
        assert options is not None
        if not self.episodes:
            if self.own_process:
                # A keyboard interrupt goes to the program, which ends this process.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            self.episodes = [Episode(self.plan) for _ in range(self.size)]
        for i, episode in enumerate(self.episodes):
            episode.reset(int(options["seeds"][self.first + i]))
        return self._stack([dict(obs=episode.history) for episode in self.episodes])

    def step(self, action: np.ndarray) -> Any:
        """Execute the chunks [G, Ta, Da]."""
        rows = [e.step(chunk) for e, chunk in zip(self.episodes, action)]
        obs, info = self._stack(rows)
        return obs, 0.0, False, False, info

    def close(self) -> None:
        for episode in self.episodes:
            episode.env.close()

    def _stack(self, rows: list[dict[str, Any]]) -> tuple[dict, dict]:
        stacked = {
            name: np.zeros((self.rows, *shape), np.float32)
            for name, shape in self.shapes.items()
        }
        for i, row in enumerate(rows):
            for name, value in row.items():
                stacked[name][i] = value
        return stacked, {}


def make_groups(plan: Plan, num_envs: int, processes: int) -> VectorEnv:
    """Run `num_envs` environments in `processes` processes; 0: in the calling one.

    Rows [W, G, ...] of the results are the environments in order, W groups of G; rows
    beyond `num_envs` are padding.
    """
    rows = -(-num_envs // max(processes, 1))
    own_process = processes > 0
    makers: list[Callable[[], gymnasium.Env]] = []
    for first in range(0, num_envs, rows):
        size = min(rows, num_envs - first)
        makers.append(functools.partial(Group, plan, first, size, rows, own_process))
    # Groups reset their environments within a step and never report an end, so
    # Gymnasium must not reset anything.
    mode = AutoresetMode.DISABLED
    if not own_process:
        return SyncVectorEnv(makers, autoreset_mode=mode)
    # A fork of a process that runs JAX may deadlock. The fork server imports modules
    # once for all processes; with "spawn" every process imports them again.
    method = "forkserver"
    if method in multiprocessing.get_all_start_methods():
        multiprocessing.get_context(method).set_forkserver_preload([__name__])
    else:
        method = "spawn"
    return AsyncVectorEnv(makers, context=method, autoreset_mode=mode)


def _box(shape: tuple[int, ...]) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, np.float32)

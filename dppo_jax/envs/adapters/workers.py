"""The host side of `host_vec_env`: episodes of Gymnasium environments, in NumPy.

A process holds a group of environments and answers once per action chunk. What a
chunk, a history and a time limit mean is what `dppo_jax.envs.wrappers` says.
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


class Plan(NamedTuple):
    """What an episode is made of.

    make: () -> one environment; must survive the way to another process.
    obs_keys: entries of a dictionary observation, side by side; empty: all.
    metrics: entries of `info` to report.
    trace: those of them to report at every control step.
    obs_size, action_shape: Do, and the shape of one action.
    chunk, history: Ta, To.
    max_steps: control steps until the time limit; None without one.
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


def flat_observation(obs: Any, keys: tuple[str, ...]) -> np.ndarray:
    """An observation as a vector [Do] float32; entries of a dictionary side by side."""
    parts = [obs[key] for key in keys or obs] if isinstance(obs, Mapping) else [obs]
    return np.concatenate([np.asarray(part, np.float32).reshape(-1) for part in parts])


def scalars(info: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in an `info`; all else that it holds is left out."""
    return {
        name: float(np.asarray(value).item())
        for name, value in info.items()
        if isinstance(name, str)
        and isinstance(value, (bool, int, float, np.bool_, np.number, np.ndarray))
        and np.size(value) == 1
        and np.asarray(value).dtype.kind in "biuf"
    }


class Episode:
    """One environment and the episode that runs in it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.env = plan.make()
        self.history = np.zeros((plan.history, plan.obs_size), np.float32)
        self.count = 0
        self.metrics: dict[str, float] = {}

    def reset(self, seed: int | None = None) -> None:
        """Start anew; without a seed, from the environment's own random stream."""
        obs, _ = self.env.reset(seed=seed)
        self.history[:] = flat_observation(obs, self.plan.obs_keys)
        self.count = 0
        # An entry that comes and goes keeps its last value; before any, it is 0.
        self.metrics = dict.fromkeys(self.plan.metrics, 0.0)

    def step(self, chunk: np.ndarray) -> dict[str, Any]:
        """Execute a chunk [Ta, Da], up to an end; where there is one, reset.

        Returns:
            The row of `Group` that belongs to this environment.
        """
        plan, space = self.plan, self.env.action_space
        reward, terminated, truncated = 0.0, False, False
        trace = np.zeros((plan.chunk, len(plan.trace)), np.float32)
        for t, action in enumerate(chunk):
            if not (terminated or truncated):
                action = action.reshape(space.shape).astype(space.dtype)
                obs, earned, terminated, truncated, info = self.env.step(action)
                self.count += 1
                reward += float(earned)
                at_limit = plan.max_steps is not None and self.count >= plan.max_steps
                truncated = (truncated or at_limit) and not terminated
                self.history[:-1] = self.history[1:]
                self.history[-1] = flat_observation(obs, plan.obs_keys)
                found = scalars(info)
                self.metrics |= {k: found[k] for k in plan.metrics if k in found}
            trace[t] = [self.metrics[name] for name in plan.trace]
        row = dict(
            next_obs=self.history.copy(),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            length=self.count,
            metrics=np.array([self.metrics[k] for k in plan.metrics], np.float32),
            trace=trace,
        )
        if terminated or truncated:
            self.reset()
        return row | dict(obs=self.history.copy())


class Group(gymnasium.Env):
    """Environments `first` to `first + size` of a batch, as one for a process.

    Its observation is all that a step has to tell, [G, ...] by name; it never ends,
    because its environments reset themselves.
    """

    def __init__(
        self, plan: Plan, first: int, size: int, rows: int, own_process: bool
    ) -> None:
        """`rows` >= `size`: processes must look alike; what is not used stays 0."""
        self.own_process = own_process
        self.plan, self.first, self.size, self.rows = plan, first, size, rows
        # Only a process that is asked to reset needs simulators: Gymnasium makes one
        # more Group just to look at its spaces.
        self.episodes: list[Episode] = []
        self.shapes: dict[str, tuple[int, ...]] = dict(
            obs=(plan.history, plan.obs_size),
            next_obs=(plan.history, plan.obs_size),
            reward=(),
            terminated=(),
            truncated=(),
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
        """Restart all; `options["seeds"]` [B] has one seed for every environment."""
        assert options is not None
        if not self.episodes:
            if self.own_process:
                # An interrupt from the keyboard is for the program, which ends this.
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
    """`num_envs` environments in `processes` processes; 0: in the calling one.

    Rows [W, G, ...] of what comes back are environments in order; rows beyond
    `num_envs` are padding.
    """
    rows = -(-num_envs // max(processes, 1))
    own_process = processes > 0
    makers: list[Callable[[], gymnasium.Env]] = []
    for first in range(0, num_envs, rows):
        size = min(rows, num_envs - first)
        makers.append(functools.partial(Group, plan, first, size, rows, own_process))
    # Groups reset themselves within a step and keep what ended an episode, and they
    # never report an end; so Gymnasium has nothing to reset.
    mode = AutoresetMode.DISABLED
    if not own_process:
        return SyncVectorEnv(makers, autoreset_mode=mode)
    # A fork of a process that runs JAX may deadlock. The fork server imports once and
    # then copies itself; without it every process imports everything again.
    method = "forkserver"
    if method in multiprocessing.get_all_start_methods():
        multiprocessing.get_context(method).set_forkserver_preload([__name__])
    else:
        method = "spawn"
    return AsyncVectorEnv(makers, context=method, autoreset_mode=mode)


def _box(shape: tuple[int, ...]) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, np.float32)

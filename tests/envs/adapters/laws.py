"""What must hold for every adapter, and helpers that their tests share."""

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from dppo_jax.evaluate import make_evaluate, summarize
from dppo_jax.networks import GaussianMLP
from dppo_jax.normalize import Normalizer
from dppo_jax.policies import gaussian_policy
from dppo_jax.types import VecEnv
from tests import tiny


def bounds(obs_size: int, action_dim: int, scale: float = 1.0) -> Normalizer:
    """A normalizer with bounds +-scale."""
    obs, action = np.full(obs_size, scale, np.float32), np.full(action_dim, scale)
    return Normalizer(-obs, obs, -action.astype(np.float32), action.astype(np.float32))


def trains_and_evaluates(env: VecEnv) -> dict[str, float]:
    """One tiny PPO iteration and one evaluation; returns the numbers of both."""
    chunk, action_dim = env.action_shape
    network = GaussianMLP(
        action_dim=action_dim, chunk=chunk, hidden_sizes=(16,), fixed_std=0.2
    )
    policy = gaussian_policy(network)
    algorithm = tiny.make_tiny_ppo(policy, env, num_chunks=3, batch_size=3, epochs=1)
    state, (metrics,) = tiny.run(algorithm, 1)
    assert metrics["params_change"] > 0 and np.isfinite(metrics["value_loss"])
    evaluate = make_evaluate(env, policy.act, num_episodes=env.num_envs + 1)
    scores = evaluate(state.params, jax.random.key(3))
    assert scores.metrics["episode_return"].shape == (env.num_envs + 1,)
    assert 1 <= scores.metrics["episode_length"].max() <= env.max_steps * chunk
    return metrics | summarize(scores, prefix="eval/")


class Counter(gymnasium.Env):
    """The countable environment of `tests/envs/conftest.py` for Gymnasium.

    obs = total, reward = action, terminated once total >= end; `random_start` adds a
    random fraction at every reset. An action above 100 raises an error.
    """

    def __init__(self, end: float = 1e9, random_start: bool = False) -> None:
        self.end, self.random_start = end, random_start
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = spaces.Box(0.0, 10.0, (1,), np.float32)
        self.ended = True

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.total = self.np_random.uniform() if self.random_start else 0.0
        self.ended = False
        return np.array([self.total]), {}

    def step(self, action: np.ndarray) -> Any:
        assert not self.ended, "stepped after an end"
        assert action.dtype == np.float32 and action.shape == (1,)
        if action[0] > 100:
            raise RuntimeError("the counter broke")
        self.total += float(action[0])
        self.ended = self.total >= self.end
        info = {"total": self.total, "note": "text", "row": np.zeros(2)}
        return np.array([self.total]), float(action[0]), self.ended, False, info


class Mixed(Counter):
    """The same with a dictionary of observations, where `picture` is not a vector."""

    def __init__(self) -> None:
        super().__init__()
        vector = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        picture = spaces.Box(0, 255, (4, 4, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {"b": vector, "a": vector, "picture": picture}
        )

    def reset(self, **settings: Any) -> Any:
        super().reset(**settings)
        return self._seen(), {}

    def step(self, action: np.ndarray) -> Any:
        return self._seen(), *super().step(action)[1:]

    def _seen(self) -> dict[str, np.ndarray]:
        picture = np.zeros((4, 4, 3), np.uint8)
        return {"b": np.full(2, 2.0), "a": np.full(2, 1.0), "picture": picture}


def run_env(env: VecEnv, actions: jax.Array, seed: int = 0) -> Any:
    """(state, time step) after every entry of `actions` [T, B, Ta, Da], stacked."""

    def step(state: Any, action: jax.Array) -> Any:
        state, time_step = env.step(state, action)
        return state, (state.obs, time_step)

    def run(key: jax.Array) -> Any:
        return jax.lax.scan(step, tiny.start(env, key), jnp.asarray(actions))[1]

    return jax.jit(run)(jax.random.key(seed))

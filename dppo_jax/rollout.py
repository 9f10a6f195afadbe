"""Run a policy in a vectorised environment."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dppo_jax import parallel
from dppo_jax.types import Array, Metrics, Obs, Sample, Transition, VecEnv


def rollout(
    env: VecEnv,
    act: Callable[[Array, Obs], Sample],
    env_state: Any,
    key: Array,
    num_steps: int,
) -> tuple[Any, Transition, Metrics]:
    """Execute `num_steps` action chunks in every environment.

    Args:
        act: (key, obs) -> chains and log-probabilities; the last entry of a chain is
            executed as far as the environment's chunk reaches.

    Returns:
        The environment state to go on from, transitions and metrics, both with
        leading axes [T, B].
    """
    executed = env.action_shape[0]

    def step(env_state: Any, key: Array) -> tuple[Any, tuple[Transition, Metrics]]:
        obs = env_state.obs
        chain, log_prob = act(key, obs)
        env_state, outcome = env.step(env_state, chain[:, -1, :executed])
        transition = Transition(
            obs=obs,
            chain=chain,
            log_prob=log_prob,
            reward=outcome.reward,
            next_obs=outcome.obs,
            terminated=outcome.terminated,
            truncated=outcome.truncated,
        )
        return env_state, (transition, outcome.metrics)

    keys = jax.random.split(key, num_steps)
    env_state, (transitions, metrics) = jax.lax.scan(step, env_state, keys)
    return env_state, transitions, metrics


def episode_means(transitions: Transition, metrics: Metrics) -> Metrics:
    """Means over the episodes that ended in this roll-out; NaN where none did."""
    done = jnp.maximum(transitions.terminated, transitions.truncated)
    numbers = {name: x for name, x in metrics.items() if x.ndim == 2}
    count, sums = parallel.total(
        (done.sum(), {name: (x * done).sum() for name, x in numbers.items()})
    )
    means = {
        name: jnp.where(count > 0, x / jnp.maximum(count, 1), jnp.nan)
        for name, x in sums.items()
    }
    reward = parallel.mean(transitions.reward.mean())
    return means | {"num_episodes": count, "reward": reward}

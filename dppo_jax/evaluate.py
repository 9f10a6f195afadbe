"""The evaluation of a policy, used during training and by itself."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.errors import SettingsError
from dppo_jax.rollout import GREATEST, first_episodes
from dppo_jax.types import Act, Array, Metrics, PyTree, VecEnv


class Evaluation(NamedTuple):
    """One entry per episode.

    metrics: [N] numbers at the end of the episode: `episode_return`,
        `episode_length` in control steps, and the metrics of the task.
    traces: [N, S, ...] the environment's trace of every control step; after the end of
        an episode its last entry is repeated.
    """

    metrics: Metrics
    traces: dict[str, Array]


def make_evaluate(
    env: VecEnv,
    act: Act,
    *,
    num_episodes: int,
    deterministic: bool = True,
) -> Callable[[PyTree, Array], Evaluation]:
    """Make the function that scores a policy over N episodes.

    In each round every environment runs one episode. Episode i draws all its randomness
    from key i, so a score does not depend on the number of environments.

    Args:
        env: with a time limit.
        act: (params, keys, obs, deterministic) -> (action, extras).
        num_episodes: N; rounds of `env.num_envs` episodes run until there are enough.
        deterministic: False scores the exploring policy.

    Returns:
        A jitted (params, key) -> Evaluation.

    Raises:
        SettingsError: no time limit, or `num_episodes` below 1.
    """
    if env.max_steps is None:
        raise SettingsError(
            "evaluation needs a time limit; wrap the task in time_limit."
        )
    if num_episodes < 1:
        raise SettingsError(f"num_episodes={num_episodes} must be at least 1.")
    num_rounds = -(-num_episodes // env.num_envs)
    act = functools.partial(act, deterministic=deterministic)

    def one_round(params: PyTree, keys: Array) -> Evaluation:
        episodes = first_episodes(
            env,
            functools.partial(act, params),
            keys,
            record=lambda _, outcome: outcome.trace,
        )
        last = jnp.maximum(episodes.length, 1) - 1
        traces = {k: _until_end(x, last) for k, x in episodes.kept.items()}
        return Evaluation(episodes.metrics, traces)

    @jax.jit
    def evaluate(params: PyTree, key: Array) -> Evaluation:
        keys = jax.random.split(key, (num_rounds, env.num_envs))
        rounds = jax.lax.map(lambda keys: one_round(params, keys), keys)
        return jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:])[:num_episodes], rounds
        )

    return evaluate


def _until_end(trace: Array, last: Array) -> Array:
    """[T, B, Ta, ...] -> [B, T * Ta, ...]; repeat the last entry of step `last` [B]."""
    time = jnp.arange(trace.shape[0])[:, None]

    def column(x: Array) -> Array:
        return x.reshape(x.shape + (1,) * (trace.ndim - 2))

    frozen = jnp.take_along_axis(trace, column(jnp.minimum(time, last)), axis=0)
    frozen = jnp.where(column(time > last), frozen[:, :, -1:], frozen)
    frozen = jnp.moveaxis(frozen, 1, 0)
    return frozen.reshape(frozen.shape[0], -1, *frozen.shape[3:])


def summarize(evaluation: Evaluation, *, prefix: str = "") -> dict[str, float]:
    """The mean of every metric, and the standard error of the mean return.

    Of the metrics in `rollout.GREATEST` it is the greatest value instead.
    """
    means = {
        f"{prefix}{name}": float((np.max if name in GREATEST else np.mean)(values))
        for name, values in evaluation.metrics.items()
    }
    returns = np.asarray(evaluation.metrics["episode_return"])
    error = (
        float(returns.std(ddof=1) / np.sqrt(returns.size)) if returns.size > 1 else 0
    )
    return means | {f"{prefix}episode_return_stderr": error}

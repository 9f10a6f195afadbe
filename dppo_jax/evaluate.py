"""The only evaluation: during training and stand-alone."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.rollout import rollout
from dppo_jax.types import Array, Metrics, Policy, PolicyParams, VecEnv


class Evaluation(NamedTuple):
    """One entry per episode.

    metrics: [N] numbers at the end of the episode; `episode_return`,
        `episode_length` in control steps, and what the task reports.
    traces: [N, S, ...] what the environment traced at every control step; after
        the end of an episode its last entry repeats.
    """

    metrics: Metrics
    traces: Metrics


def make_evaluate(
    env: VecEnv,
    policy: Policy,
    *,
    num_episodes: int,
    deterministic: bool = True,
) -> Callable[[PolicyParams, Array], Evaluation]:
    """Score a policy over the first episode of every environment and round.

    Only first episodes count: counting whatever finishes first would favour short
    ones.

    Args:
        env: with a time limit; metrics with more axes than [B] are traces.
        num_episodes: N; rounds of `env.num_envs` are run until there are enough.
        deterministic: evaluation mode of the policy, or the exploring one.

    Returns:
        A jitted (params, key) -> Evaluation.

    Raises:
        ValueError: no time limit, or less than one episode.
    """
    if env.max_steps is None:
        raise ValueError("evaluation needs a time limit; wrap the task in time_limit.")
    if num_episodes < 1:
        raise ValueError(f"num_episodes={num_episodes} must be at least 1.")
    num_steps, num_rounds = env.max_steps, -(-num_episodes // env.num_envs)

    def round_(params: PolicyParams, key: Array) -> tuple[Metrics, Metrics]:
        reset_key, act_key = jax.random.split(key)

        def act(key, obs):
            return policy.sample(params, key, obs, deterministic=deterministic)

        _, transitions, metrics = rollout(
            env, act, env.reset(reset_key), act_key, num_steps
        )
        done = jnp.maximum(transitions.terminated, transitions.truncated)
        end = jnp.argmax(done, axis=0)  # [B] first step that ends an episode

        def at_end(x: Array) -> Array:
            return jax.vmap(lambda column, t: column[t], (1, 0))(x, end)

        def until_end(x: Array) -> Array:
            # [T, B, Ta, ...] -> [B, T * Ta, ...], frozen after the end.
            time = jnp.minimum(jnp.arange(x.shape[0])[:, None], end)
            after = jnp.arange(x.shape[0])[:, None] > end
            index = time.reshape(time.shape + (1,) * (x.ndim - 2))
            frozen = jnp.take_along_axis(x, index, axis=0)
            after = after.reshape(after.shape + (1,) * (x.ndim - 2))
            frozen = jnp.where(after, frozen[:, :, -1:], frozen)
            frozen = jnp.moveaxis(frozen, 1, 0)
            return frozen.reshape(
                frozen.shape[0], frozen.shape[1] * frozen.shape[2], *frozen.shape[3:]
            )

        numbers = {k: at_end(v) for k, v in metrics.items() if v.ndim == 2}
        traces = {k: until_end(v) for k, v in metrics.items() if v.ndim > 2}
        return numbers, traces

    @jax.jit
    def evaluate(params: PolicyParams, key: Array) -> Evaluation:
        keys = jax.random.split(key, num_rounds)
        rounds = jax.lax.map(lambda key: round_(params, key), keys)
        flat = jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:])[:num_episodes], rounds
        )
        return Evaluation(*flat)

    return evaluate


def summarize(evaluation: Evaluation, *, prefix: str = "") -> dict[str, float]:
    """Mean of every metric, and the standard error of the return."""
    means = {
        f"{prefix}{name}": float(np.mean(values))
        for name, values in evaluation.metrics.items()
    }
    returns = np.asarray(evaluation.metrics["episode_return"])
    error = (
        float(returns.std(ddof=1) / np.sqrt(returns.size)) if returns.size > 1 else 0
    )
    return means | {f"{prefix}episode_return_stderr": error}

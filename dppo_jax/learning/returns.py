"""Generalized advantage estimation, and scaling of rewards by a running estimate."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dppo_jax.training import parallel
from dppo_jax.types import Array


def gae(
    reward: Array,
    value: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    *,
    discount: float,
    gae_lambda: float,
    diverged: Array | None = None,
) -> tuple[Array, Array]:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16).

    Args:
        reward: [T, B] summed over the executed chunk.
        value: [T, B] V(s_t).
        next_value: [T, B] V of the observation that followed, before any reset.
        terminated: [T, B] 1 where the task ended; nothing is bootstrapped.
        truncated: [T, B] 1 where a time limit ended the episode; `next_value` is
            bootstrapped.
        discount: per chunk, not per control step.
        gae_lambda: 0 gives one-step TD errors, 1 gives Monte-Carlo advantages.
        diverged: [T, B] 1 where a simulation broke, which must also be `truncated`; the
            advantage there is 0, so the step before bootstraps from its value. None:
            nowhere.

    Returns:
        Advantages and value targets, both [T, B].
    """
    chex.assert_equal_shape([reward, value, next_value, terminated, truncated])
    # A product with 0 alone would keep a NaN in the value of a terminal observation.
    next_value = jnp.where(terminated > 0, 0.0, next_value)
    delta = reward + discount * (1 - terminated) * next_value - value
    if diverged is not None:
        delta = jnp.where(diverged > 0, 0.0, delta)
    decay = discount * gae_lambda * (1 - jnp.maximum(terminated, truncated))

    def backward(advantage: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, decay = step
        advantage = delta + decay * advantage
        return advantage, advantage

    _, advantage = jax.lax.scan(
        backward, jnp.zeros_like(delta[0]), (delta, decay), reverse=True
    )
    return advantage, advantage + value


class RewardScale(NamedTuple):
    """Running moments of the discounted sums of past rewards.

    mean, variance: scalars over all samples so far.
    weight: how many samples these are.
    discounted: [B] the current sum of each environment.
    """

    mean: Array
    variance: Array
    weight: Array
    discounted: Array


def init_reward_scale(num_envs: int) -> RewardScale:
    """Start from unit variance with the weight of 1e-4 samples."""
    return RewardScale(
        mean=jnp.zeros(()),
        variance=jnp.ones(()),
        weight=jnp.full((), 1e-4),
        discounted=jnp.zeros(num_envs),
    )


def scale_rewards(
    scale: RewardScale,
    reward: Array,
    first: Array,
    *,
    discount: float,
    bound: float = 10.0,
    epsilon: float = 1e-8,
) -> tuple[RewardScale, Array]:
    """Divide rewards by the standard deviation of returns (Engstrom et al. 2020).

    Future returns are unknown, so discounted sums of past rewards, which have similar
    statistics, replace them. The mean is not subtracted: only the scale matters to the
    critic.

    Args:
        reward: [T, B].
        first: [T, B] 1 where an episode begins.
        discount: of the sums.
        bound: scaled rewards are clipped to [-bound, bound].

    Returns:
        The updated scale and the scaled rewards [T, B].
    """
    chex.assert_equal_shape([reward, first])

    def forward(total: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, first = step
        total = reward + (1 - first) * discount * total
        return total, total

    last, totals = jax.lax.scan(forward, scale.discounted, (reward, first))
    batch_mean, batch_variance = parallel.moments(totals)
    size = totals.size * parallel.num_shards()
    weight = scale.weight + size
    delta = batch_mean - scale.mean
    squares = (
        scale.variance * scale.weight
        + batch_variance * size
        + delta**2 * scale.weight * size / weight
    )
    scale = RewardScale(
        mean=scale.mean + delta * size / weight,
        variance=squares / (weight - 1),
        weight=weight,
        discounted=last,
    )
    scaled = reward / jnp.sqrt(scale.variance + epsilon)
    return scale, jnp.clip(scaled, -bound, bound)

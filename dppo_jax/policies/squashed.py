"""A Gaussian squashed by tanh into (-1, 1), the policy of soft actor-critic.

Haarnoja et al. (2018a, arXiv 1801.01290), appendix C: with u = mean + std draw and
a = tanh(u), log pi(a) = sum of log N(u; mean, std) - log(1 - tanh(u)^2).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from dppo_jax.types import Array, Obs, PyTree


class SquashedPolicy(NamedTuple):
    """A policy over action chunks in (-1, 1) with an exact log-probability.

    init: (key, obs) -> params.
    act: (params, keys [B], obs, *, deterministic) -> (action [B, Ta, Da], {}), one key
        per row; the deterministic action is tanh(mean), the median.
    sample: (params, keys [B], obs) -> (action [B, Ta, Da], log_prob [B]), both
        reparametrised, so they are differentiable in params.
    clone_loss: (params, keys [B], obs, action [B, Ta, Da]) -> [B], the negative
        log-probability of a given action.
    """

    init: Callable[..., PyTree]
    act: Callable[..., tuple[Array, PyTree]]
    sample: Callable[..., tuple[Array, Array]]
    clone_loss: Callable[..., Array]


def squash(
    mean: Array, std: Array, draw: Array, *, slope_margin: float = 0.0
) -> tuple[Array, Array]:
    """Compute tanh(mean + std draw) and its log-probability, summed over a chunk.

    Args:
        mean, std: [B, Ta, Da].
        draw: [B, Ta, Da], standard normal.
        slope_margin: added to 1 - tanh^2 in its logarithm; the reference adds 1e-6,
            which bounds the log-probability of saturated actions.

    Returns:
        Action [B, Ta, Da] and log_prob [B].
    """
    chex.assert_equal_shape([mean, std, draw])
    before = mean + std * draw
    log_prob = -0.5 * draw**2 - jnp.log(std) - 0.5 * jnp.log(2 * jnp.pi)
    action = jnp.tanh(before)
    if slope_margin:
        log_slope = jnp.log(1 - action**2 + slope_margin)
    else:
        # This form is exact even if 1 - tanh^2 underflows.
        log_slope = 2 * (jnp.log(2.0) - before - jax.nn.softplus(-2 * before))
    return action, (log_prob - log_slope).sum((-2, -1))


def squashed_log_prob(
    mean: Array, std: Array, action: Array, *, margin: float = 1e-6
) -> Array:
    """Log-probability [B] of given actions [B, Ta, Da].

    Args:
        mean, std: [B, Ta, Da], before tanh.
        margin: actions are clipped to [-1 + margin, 1 - margin], because tanh does not
            reach +-1.
    """
    chex.assert_equal_shape([mean, std, action])
    before = jnp.arctanh(jnp.clip(action, -1 + margin, 1 - margin))
    return squash(mean, std, (before - mean) / std)[1]


def squashed_policy(network: nn.Module, *, slope_margin: float = 0.0) -> SquashedPolicy:
    """Make the policy of a network.

    Args:
        network: `apply(params, obs) -> mean, std`, both [B, Ta, Da] and before tanh. It
            must bound std itself. An example is a `GaussianMLP` with
            tanh_output=False, std_min=e^-5, std_max=e^2.
        slope_margin: see `squash`.
    """
    apply: Callable[..., Any] = network.apply

    def init(key: Array, obs: Obs) -> PyTree:
        return network.init(key, obs)

    def sample(params: PyTree, keys: Array, obs: Obs) -> tuple[Array, Array]:
        mean, std = apply(params, obs)
        draw = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
        return squash(mean, std, draw, slope_margin=slope_margin)

    def act(
        params: PyTree, keys: Array, obs: Obs, *, deterministic: bool = False
    ) -> tuple[Array, PyTree]:
        if deterministic:
            return jnp.tanh(apply(params, obs)[0]), {}
        return sample(params, keys, obs)[0], {}

    def clone_loss(params: PyTree, keys: Array, obs: Obs, action: Array) -> Array:
        del keys  # Nothing is drawn.
        mean, std = apply(params, obs)
        return -squashed_log_prob(mean, std, action)

    return SquashedPolicy(init, act, sample, clone_loss)


def scaled_policy(policy: SquashedPolicy, bound: float) -> SquashedPolicy:
    """The same distribution over `bound` times the action, in (-bound, bound).

    Args:
        policy: over actions in (-1, 1).
        bound: positive; log-probabilities fall by its logarithm for every entry.
    """

    def sample(params: PyTree, keys: Array, obs: Obs) -> tuple[Array, Array]:
        action, log_prob = policy.sample(params, keys, obs)
        num_entries = action[0].size
        return bound * action, log_prob - num_entries * jnp.log(bound)

    def act(
        params: PyTree, keys: Array, obs: Obs, *, deterministic: bool = False
    ) -> tuple[Array, PyTree]:
        action, extras = policy.act(params, keys, obs, deterministic=deterministic)
        return bound * action, extras

    def clone_loss(params: PyTree, keys: Array, obs: Obs, action: Array) -> Array:
        loss = policy.clone_loss(params, keys, obs, action / bound)
        return loss + action[0].size * jnp.log(bound)

    return SquashedPolicy(policy.init, act, sample, clone_loss)

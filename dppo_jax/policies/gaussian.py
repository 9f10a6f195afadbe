"""A Gaussian policy: a chain of one move from zero."""

from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from dppo_jax.diffusion.chain import Moments, Sample, gaussian_log_prob
from dppo_jax.networks.dropout import apply_with_dropout
from dppo_jax.policies.chain import (
    ChainPolicy,
    PolicyParams,
    act_by,
    gaussian_entropy,
    row_normal,
)
from dppo_jax.types import Array, Obs, PyTree

# Standard deviation of deterministic actions, as in the reference.
_DETERMINISTIC_STD = 1e-4


def gaussian_policy(
    network: nn.Module, *, draw_clip: float = 3.0, clone_std: bool = True
) -> ChainPolicy:
    """Make a Gaussian over action chunks, as a chain of one move from zero.

    Args:
        network: `apply(params, obs) -> mean, std`, both [B, Ta, Da].
        draw_clip: standard-normal draws are clipped to +- this; the log-probability
            ignores the clipping.
        clone_std: whether cloning trains the standard deviation, as fine-tuning does.
    """

    apply: Callable[..., Any] = network.apply

    def init(key: Array, obs: Obs) -> PolicyParams:
        params = network.init(key, obs)
        return PolicyParams(base=params, tuned=params)

    def sample(
        params: PolicyParams, keys: Array, obs: Obs, *, deterministic: bool = False
    ) -> Sample:
        mean, std = apply(params.tuned, obs)
        draw = jnp.clip(row_normal(keys, mean.shape[1:]), -draw_clip, draw_clip)
        action = mean + (_DETERMINISTIC_STD if deterministic else std) * draw
        entries = jnp.stack([jnp.zeros_like(action), action], axis=1)
        return Sample(entries, gaussian_log_prob(action, mean, std)[:, None])

    def log_prob(
        params: PyTree, x: Array, next_x: Array, obs: Obs, step: Array
    ) -> Array:
        chex.assert_equal_shape([x, next_x])
        mean, std = apply(params, obs)
        return gaussian_log_prob(next_x, mean, std)

    def chain_log_prob(params: PyTree, entries: Array, obs: Obs) -> Array:
        mean, std = apply(params, obs)
        return gaussian_log_prob(entries[:, 1], mean, std)[:, None]

    def chain_moments(params: PyTree, entries: Array, obs: Obs) -> Moments:
        mean, std = apply(params, obs)
        return Moments(mean[:, None], std[:, None])

    def clone_loss(params: PyTree, keys: Array, obs: Obs, action: Array) -> Array:
        mean, std = apply_with_dropout(network, params, keys, obs)
        std = std if clone_std else jax.lax.stop_gradient(std)
        return -gaussian_log_prob(action, mean, std).mean((-2, -1))

    def entropy(params: PyTree, obs: Obs) -> Array:
        return gaussian_entropy(apply(params, obs)[1]).mean((-2, -1))

    return ChainPolicy(
        init=init,
        act=act_by(sample),
        sample=sample,
        log_prob=log_prob,
        chain_log_prob=chain_log_prob,
        chain_moments=chain_moments,
        clone_loss=clone_loss,
        entropy=entropy,
        num_tuned_steps=1,
        min_std=0.0,
        denoises=False,
    )

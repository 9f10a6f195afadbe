"""A Gaussian mixture (GMM) over action chunks: a chain of one move from zero.

A mixture of M modes has the density

    p(a) = sum_m w_m prod_i N(a_i; mean_mi, std_mi)

over all entries i of a chunk. All entries come from the same mode, so they depend on
each other. For each entry, in the order of time, `log_prob` gives the log-density given
the entries before it,

    log p(a_i | a_0 ... a_{i-1}) = log p(a_0 ... a_i) - log p(a_0 ... a_{i-1}).

Their sum is the joint log-density, the sum over the first actions of a chunk is the
marginal log-density of these actions, and with one mode each is the log-density of a
Gaussian. Single values depend on the order of the entries, so the policy is marked
`joint`: only their sum may be used (`learning.chain_losses.joint_log_prob`).
"""

from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from dppo_jax.diffusion.chain import Sample, gaussian_log_prob
from dppo_jax.networks.dropout import apply_with_dropout
from dppo_jax.policies.chain import ChainPolicy, PolicyParams, act_by, gaussian_entropy
from dppo_jax.types import Array, Obs, PyTree

# The modes of a deterministic mixture keep this much noise, as in the reference.
_DETERMINISTIC_STD = 1e-4


def mixture_log_prob(action: Array, means: Array, stds: Array, logits: Array) -> Array:
    """Log-density of every entry given those before it, see above.

    Args:
        action: [B, Ta, Da].
        means, stds: [B, M, Ta, Da].
        logits: [B, M] of the modes' weights, not normalised.

    Returns:
        [B, Ta, Da], whose sum is the joint log-density.
    """
    chex.assert_equal_shape([means, stds])
    chex.assert_shape(means, (*logits.shape, *action.shape[1:]))
    of_modes = gaussian_log_prob(action[:, None], means, stds)
    of_modes = of_modes.reshape(*logits.shape, -1).cumsum(-1)
    log_weights = jax.nn.log_softmax(logits)[..., None]
    so_far = jax.nn.logsumexp(log_weights + of_modes, axis=1)
    before = jnp.pad(so_far[:, :-1], ((0, 0), (1, 0)))
    return (so_far - before).reshape(action.shape)


def component_entropy(stds: Array, logits: Array) -> Array:
    """The mean entropy of the modes, [B] in nats, which the reference uses as entropy.

    It is a lower bound of the mixture's entropy, because entropy is concave in the
    density. The difference is at most the entropy of the weights, which is at most
    log M. Arguments as in `mixture_log_prob`.
    """
    of_modes = gaussian_entropy(stds).sum((-2, -1))
    return (jax.nn.softmax(logits) * of_modes).sum(-1)


def mixture_entropy(means: Array, stds: Array, logits: Array) -> Array:
    """A lower bound of the entropy of a mixture, [B], without draws.

    The mean entropy of the modes, less the mean over modes i of

        log sum_j w_j exp(-distance(i, j))

    with the distance of Bhattacharyya between modes (Kolchinsky and Tracey 2017, arXiv
    1706.02419). It is exact where modes coincide and where they lie far apart, and at
    least `component_entropy`. Arguments as in `mixture_log_prob`.
    """
    mean, other_mean = means[:, :, None], means[:, None]
    std, other_std = stds[:, :, None], stds[:, None]
    squares = std**2 + other_std**2
    distance = (mean - other_mean) ** 2 / (4 * squares) + 0.5 * jnp.log(
        squares / (2 * std * other_std)
    )
    log_weights = jax.nn.log_softmax(logits)
    distance = distance.sum((-2, -1))
    overlap = jax.nn.logsumexp(log_weights[:, None] - distance, axis=-1)
    mixing = -(jnp.exp(log_weights) * overlap).sum(-1)
    return component_entropy(stds, logits) + mixing


def gmm_policy(
    network: nn.Module, *, draw_clip: float = 3.0, clone_std: bool = True
) -> ChainPolicy:
    """A Gaussian mixture over action chunks, as a chain of one move from zero.

    A sample draws one mode for the whole chunk, then the chunk from this mode. A
    deterministic policy still draws the mode, as in the reference; then it takes the
    mean, with a standard deviation of 1e-4. `clone_loss` is minus the joint log-density
    and `entropy` is `mixture_entropy`, both of the whole chunk.

    Args:
        network: `apply(params, obs) -> means, stds, logits`, [B, M, Ta, Da] twice and
            [B, M].
        draw_clip: bound of standard-normal draws; the density stays unclipped.
        clone_std: whether cloning trains standard deviations, as fine-tuning does.
    """

    apply: Callable[..., Any] = network.apply

    def init(key: Array, obs: Obs) -> PolicyParams:
        params = network.init(key, obs)
        return PolicyParams(base=params, tuned=params)

    def sample(
        params: PolicyParams, keys: Array, obs: Obs, *, deterministic: bool = False
    ) -> Sample:
        means, stds, logits = apply(params.tuned, obs)

        def one(key: Array, means: Array, stds: Array, logits: Array) -> Array:
            mode_key, draw_key = jax.random.split(key)
            mode = jax.random.categorical(mode_key, logits)
            draw = jax.random.normal(draw_key, means.shape[1:])
            std = _DETERMINISTIC_STD if deterministic else stds[mode]
            return means[mode] + std * jnp.clip(draw, -draw_clip, draw_clip)

        action = jax.vmap(one)(keys, means, stds, logits)
        entries = jnp.stack([jnp.zeros_like(action), action], axis=1)
        log_prob = mixture_log_prob(action, means, stds, logits)
        return Sample(entries, log_prob[:, None])

    def log_prob(
        params: PyTree, x: Array, next_x: Array, obs: Obs, step: Array
    ) -> Array:
        chex.assert_equal_shape([x, next_x])
        return mixture_log_prob(next_x, *apply(params, obs))

    def chain_log_prob(params: PyTree, entries: Array, obs: Obs) -> Array:
        return mixture_log_prob(entries[:, 1], *apply(params, obs))[:, None]

    def clone_loss(params: PyTree, keys: Array, obs: Obs, action: Array) -> Array:
        means, stds, logits = apply_with_dropout(network, params, keys, obs)
        stds = stds if clone_std else jax.lax.stop_gradient(stds)
        return -mixture_log_prob(action, means, stds, logits).sum((-2, -1))

    def entropy(params: PyTree, obs: Obs) -> Array:
        return mixture_entropy(*apply(params, obs))

    return ChainPolicy(
        init=init,
        act=act_by(sample),
        sample=sample,
        log_prob=log_prob,
        chain_log_prob=chain_log_prob,
        clone_loss=clone_loss,
        entropy=entropy,
        num_tuned_steps=1,
        min_std=0.0,
        denoises=False,
        joint=True,
    )

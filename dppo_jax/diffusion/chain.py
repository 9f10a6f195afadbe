"""Chains of Gaussian moves: sampling and log-probabilities for any kind of move.

Diffusion and flow policies act by a chain x_0 -> x_1 -> ... -> x_K of Gaussian moves
(paper Sec. 4.1),

    mean, std = move(params, x_k, k, condition),    x_{k+1} ~ N(mean, std^2).

Step k = 0 is the noisiest.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dppo_jax.types import Array, PyTree

# (params, x [B, Ta, Da], step, condition) -> (mean like x, standard deviation that
# broadcasts to x). The standard deviation may be a table over steps or the output of a
# network. `step` is [B], or a scalar for all rows.
Move = Callable[[PyTree, Array, Array, PyTree], tuple[Array, Array]]


class Chain(NamedTuple):
    """The moves of a policy.

    explore: move of roll-outs and of log-probabilities.
    deterministic: move of evaluation.
    num_denoising_steps: K.
    draw_clip: standard-normal draws are clipped to +- this; log-probabilities ignore
        the clipping.
    final_clip: the action is clipped to +- this; None: not clipped.
    min_log_prob_std: floor of the standard deviation in log-probabilities; 0, no floor,
        suits moves whose standard deviation is never near zero.
    """

    explore: Move
    deterministic: Move
    num_denoising_steps: int
    draw_clip: float
    final_clip: float | None
    min_log_prob_std: float


class Encoded(NamedTuple):
    """Parameters of a network and its encoding of the observations of a chain."""

    params: PyTree
    condition: PyTree


class Moments(NamedTuple):
    """Means and standard deviations of moves, with which these are scored.

    mean, std: [B, K', Ta, Da].
    """

    mean: Array
    std: Array


class Sample(NamedTuple):
    """Sampled chains.

    chain: [B, K' + 1, Ta, Da]; `chain[:, -1]` is the action chunk.
    log_prob: [B, K', Ta, Da], entry by entry.
    """

    chain: Array
    log_prob: Array


def gaussian_log_prob(value: Array, mean: Array, std: Array) -> Array:
    """Log-density of independent Gaussians, entry by entry."""
    z = (value - mean) / std
    return -0.5 * (z**2 + jnp.log(2 * jnp.pi)) - jnp.log(std)


def move_log_prob(
    chain: Chain, network: Encoded, x: Array, next_x: Array, step: Array
) -> Array:
    """Log-probability of the exploring moves x -> next_x, entry by entry (eq. 4.3).

    Args:
        network: its condition has leaves [B, ...].
        x, next_x: [B, Ta, Da].
        step: [B] index of the move among all K.

    Returns:
        [B, Ta, Da]; the standard deviation is floored at `min_log_prob_std`.
    """
    chex.assert_equal_shape([x, next_x])
    mean, std = _scored_moments(chain, network, x, step)
    return gaussian_log_prob(next_x, mean, std)


def chain_log_prob(chain: Chain, network: Encoded, entries: Array) -> Array:
    """Log-probabilities of the last K' moves, entry by entry.

    Args:
        network: its condition has leaves [B, ...].
        entries: [B, K' + 1, Ta, Da] of a chain, the last one is the chunk.

    Returns:
        [B, K', Ta, Da].
    """
    network, x, step = _every_move(chain, network, entries)
    next_x = entries[:, 1:].reshape(x.shape)
    log_prob = move_log_prob(chain, network, x, next_x, step)
    return log_prob.reshape(entries[:, 1:].shape)


def chain_moments(chain: Chain, network: Encoded, entries: Array) -> Moments:
    """The moments of the same moves; arguments are as in `chain_log_prob`."""
    network, x, step = _every_move(chain, network, entries)
    mean, std = _scored_moments(chain, network, x, step)
    std = jnp.broadcast_to(std, mean.shape)
    shape = entries[:, 1:].shape
    return Moments(mean.reshape(shape), std.reshape(shape))


def _scored_moments(
    chain: Chain, network: Encoded, x: Array, step: Array
) -> tuple[Array, Array]:
    mean, std = chain.explore(network.params, x, step, network.condition)
    return mean, jnp.maximum(std, chain.min_log_prob_std)


def _every_move(
    chain: Chain, network: Encoded, entries: Array
) -> tuple[Encoded, Array, Array]:
    """The network, x [B K', Ta, Da] before and index [B K'] of the last K' moves."""
    batch, num_entries, *shape = entries.shape
    num_moves = num_entries - 1
    condition = jax.tree.map(
        lambda x: jnp.repeat(x, num_moves, axis=0), network.condition
    )
    first = chain.num_denoising_steps - num_moves
    step = jnp.tile(first + jnp.arange(num_moves), batch)
    x = entries[:, :-1].reshape(-1, *shape)
    return network._replace(condition=condition), x, step


def run_moves(
    chain: Chain,
    move: Move,
    network_of: Callable[[Array], Encoded],
    x: Array,
    draws: Array,
    *,
    first: int,
    last: int,
    min_std: Array | float,
) -> tuple[Array, Array, Array]:
    """Run steps `first` ... `last - 1` of a chain on given standard-normal draws.

    Args:
        network_of: step -> the network that runs it.
        x: [B, Ta, Da] before step `first`.
        draws: [K, B, Ta, Da]; entry k belongs to step k and is clipped here.
        min_std: floor of the sampling standard deviation.

    Returns:
        x after the last step. For all S steps, x after the step and its entry-wise
        log-probability as in `move_log_prob`, both [S, B, Ta, Da].
    """

    def one(x: Array, inputs: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        step, draw = inputs
        network = network_of(step)
        mean, std = move(network.params, x, step, network.condition)
        draw = jnp.clip(draw, -chain.draw_clip, chain.draw_clip)
        x = mean + jnp.maximum(std, min_std) * draw
        if chain.final_clip is not None:
            is_last = step == chain.num_denoising_steps - 1
            bound = jnp.where(is_last, chain.final_clip, jnp.inf)
            x = jnp.clip(x, -bound, bound)
        log_prob_std = jnp.maximum(std, chain.min_log_prob_std)
        return x, (x, gaussian_log_prob(x, mean, log_prob_std))

    steps = jnp.arange(first, last)
    x, (xs, log_probs) = jax.lax.scan(one, x, (steps, draws[first:last]))
    return x, xs, log_probs


def sample_chain(
    chain: Chain,
    base: Encoded,
    network_of: Callable[[Array], Encoded],
    draws: Array,
    *,
    num_tuned: int,
    min_std: Array | float,
    deterministic: bool,
) -> Sample:
    """Denoise from x_0 ~ N(0, I); keep the last `num_tuned` steps (paper eq. 4.2).

    Args:
        base: network of the first K - num_tuned steps.
        network_of: step -> network of a later step.
        draws: [K + 1, B, Ta, Da] standard normal; entry 0 is x_0 itself.
        min_std: floor of the sampling standard deviation; unused if deterministic.
    """
    move = chain.deterministic if deterministic else chain.explore
    floor = 0.0 if deterministic else min_std
    first_tuned = chain.num_denoising_steps - num_tuned
    x, draws = draws[0], draws[1:]
    if first_tuned > 0:
        x, _, _ = run_moves(
            chain,
            move,
            lambda step: base,
            x,
            draws,
            first=0,
            last=first_tuned,
            min_std=floor,
        )
    _, xs, log_probs = run_moves(
        chain,
        move,
        network_of,
        x,
        draws,
        first=first_tuned,
        last=chain.num_denoising_steps,
        min_std=floor,
    )
    entries = jnp.concatenate([x[None], xs])
    return Sample(jnp.moveaxis(entries, 0, 1), jnp.moveaxis(log_probs, 0, 1))

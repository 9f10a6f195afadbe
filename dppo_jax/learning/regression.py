"""Weighted regression of a policy, on plain arrays.

The policy clones its own chunks, each with the weight

    w = min(exp(beta A), max_weight)

of a standardised return (RWR: Peters and Schaal 2007) or advantage A (AWR: Peng et al.
2019, arXiv 1910.00177). DPPO's appendix (arXiv 2409.00588) applies both to diffusion
policies, DRWR and DAWR, whose cloning loss takes the place of the log-probability.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from dppo_jax.learning import losses
from dppo_jax.learning.returns import gae
from dppo_jax.types import Array, Obs, PyTree


def returns_to_go(
    reward: Array, terminated: Array, truncated: Array, *, discount: float
) -> tuple[Array, Array]:
    """Discounted sums of the rewards from each chunk to the end of its episode.

    Nothing is bootstrapped: a time limit ends the sum as a termination does.

    Args:
        reward: [T, B] summed over the executed chunk.
        terminated, truncated: [T, B] 1 where the episode ended.
        discount: per chunk.

    Returns:
        The sums, and 1 for chunks whose episode ended in these T chunks, both [T, B].
        The other sums lack what comes after the last chunk.
    """
    chex.assert_equal_shape([reward, terminated, truncated])

    def backward(
        carry: tuple[Array, Array], step: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        total, finished = carry
        reward, done = step
        carry = reward + discount * (1 - done) * total, jnp.maximum(finished, done)
        return carry, carry

    zero = jnp.zeros_like(reward[0])
    done = jnp.maximum(terminated, truncated)
    _, (total, finished) = jax.lax.scan(
        backward, (zero, zero), (reward, done), reverse=True
    )
    return total, finished


def lambda_targets(
    reward: Array,
    value: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    *,
    discount: float,
    td_lambda: float,
    error_scale: float = 1.0,
) -> Array:
    """TD(lambda) targets of V (Peng et al. 2019, Sec. 3.2), [T, B].

    V + sum over t of (discount td_lambda)^t delta_t, where the sum stops at the end of
    the episode. The TD error of a terminated chunk bootstraps nothing, that of a
    truncated one the value of the observation before the reset.

    Args:
        reward, value, next_value, terminated, truncated, discount: as in `returns.gae`.
        td_lambda: 0 gives one-step targets, 1 Monte-Carlo returns.
        error_scale: factor of the TD errors; the reference has 0.95.
    """
    advantage, _ = gae(
        reward,
        value,
        next_value,
        terminated,
        truncated,
        discount=discount,
        gae_lambda=td_lambda,
    )
    return value + error_scale * advantage


def regression_weight(advantage: Array, *, beta: float, max_weight: float) -> Array:
    """min(exp(beta A), max_weight), like `advantage` (DPPO paper, appendix)."""
    return jnp.exp(jnp.minimum(beta * advantage, jnp.log(max_weight)))


def weighted_clone_loss(
    clone_loss: Callable[[PyTree, Array, Obs, Array], Array],
    params: PyTree,
    keys: Array,
    obs: Obs,
    chunk: Array,
    weight: Array,
    counted: Array | None = None,
) -> Array:
    """Mean over rows of the weight times the cloning loss.

    Args:
        clone_loss: see `ChainPolicy`.
        keys: [B]. obs: leaves [B, ...]. chunk: [B, Ta, Da].
        weight: [B], see `regression_weight`.
        counted: [B] 1 for rows that the mean is over; None: all.
    """
    loss = clone_loss(params, keys, obs, chunk)
    chex.assert_equal_shape([loss, weight])
    return losses.weighted_mean(weight * loss, counted)


def value_regression_loss(
    value: Array, target: Array, *, broadcast: bool = False
) -> Array:
    """Half the mean squared error of V(s) against the target of the same row.

    Args:
        value, target: [B].
        broadcast: compare every value with every target. The reference subtracts an
            array [B] from one [B, 1], so its V learns only the mean of the targets.
    """
    chex.assert_equal_shape([value, target])
    if not broadcast:
        return losses.value_loss(value, target)
    return 0.5 * ((value[:, None] - target[None]) ** 2).mean()

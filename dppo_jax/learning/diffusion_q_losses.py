"""Losses with which IDQL, DQL, QSM and DIPO learn; `q_losses` has those of SAC.

A time step is an action chunk, and Q(s, a) scores a whole chunk.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from dppo_jax.training import parallel
from dppo_jax.types import Array

# [B, Ta, Da] -> [N, B], the values of N critics for given observations.
ValueOf = Callable[[Array], Array]


def expectile_loss(value: Array, target: Array, *, expectile: float) -> Array:
    """Loss of V(s) whose minimum is an expectile of the targets.

    IQL (Kostrikov et al. 2021, arXiv 2110.06169, eq. 5), as in IDQL (arXiv 2304.10573):
    the mean of |expectile - 1[u < 0]| u^2 with u = target - value.

    Args:
        value, target: [B].
        expectile: 0.5 gives half the mean squared error; towards 1, V approaches the
            largest target.
    """
    chex.assert_rank([value, target], 1)
    chex.assert_equal_shape([value, target])
    error = target - value
    return (jnp.where(error > 0, expectile, 1 - expectile) * error**2).mean()


def normalized_value_loss(value: Array, swap: Array) -> Array:
    """Minus the mean value of one critic, over the mean |value| of the other one.

    DQL (arXiv 2208.06193, eq. 3 with its normalisation of eta): the scale of Q cancels.
    The denominator has no gradient.

    Args:
        value: [2, B] of two critics, at actions of the policy.
        swap: scalar; whether the second critic is the one that is raised.
    """
    chex.assert_rank(value, 2)
    raised, other = jnp.where(swap, value[::-1], value)
    scale = parallel.mean(jnp.abs(other).mean())
    return -raised.mean() / jax.lax.stop_gradient(scale)


def value_gradient(value_of: ValueOf, action: Array) -> Array:
    """Gradient of the mean of all critics with respect to the chunk, [B, Ta, Da]."""
    return jax.grad(lambda action: value_of(action).mean(0).sum())(action)


def ascend(
    value_of: ValueOf,
    action: Array,
    *,
    num_steps: int,
    learning_rate: float,
    max_norm: float,
) -> Array:
    """Raise the least value of chunks by Adam steps on the chunks (DIPO's eq. 8).

    arXiv 2305.13122; Adam instead of plain ascent as in its code, with moments that
    start at zero.

    Args:
        value_of: chunks [B, Ta, Da] -> [num_critics, B].
        action: [B, Ta, Da]; results are clipped to [-1, 1] after every step.
        num_steps, learning_rate: of Adam.
        max_norm: bound of the gradient's norm over the whole batch, on all devices.
    """
    adam = optax.adam(learning_rate, eps=1e-5)
    gradient = jax.grad(lambda action: -value_of(action).min(0).sum())

    def one(carry: tuple, _: None) -> tuple[tuple, None]:
        action, state = carry
        grads = gradient(action)
        norm = jnp.sqrt(parallel.total((grads**2).sum()))
        grads *= jnp.minimum(1.0, max_norm / (norm + 1e-6))
        change, state = adam.update(grads, state)
        return (jnp.clip(action + change, -1, 1), state), None

    carry, _ = jax.lax.scan(one, (action, adam.init(action)), None, length=num_steps)
    return carry[0]

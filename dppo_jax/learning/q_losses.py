"""Losses of soft actor-critic methods, on plain arrays.

Equations are those of Haarnoja et al. (2018b, "Soft Actor-Critic Algorithms and
Applications", arXiv 1812.05905). A time step is an action chunk: rewards are summed
over it, and log-probabilities are those of the whole chunk.
"""

import chex
import jax.numpy as jnp

from dppo_jax.types import Array


def soft_value(value: Array, log_prob: Array, temperature: Array | float) -> Array:
    """Estimate V(s) from one sampled action (eq. 3; minimum: Fujimoto et al. 2018).

    V(s) = min_i Q_i(s, a) - temperature log pi(a | s)

    Args:
        value: [N, B] of N critics; a subset of an ensemble in REDQ (Chen et al. 2021).
        log_prob: [B].
        temperature: alpha; 0 removes the entropy term.

    Returns:
        [B].
    """
    chex.assert_rank([value, log_prob], [2, 1])
    chex.assert_equal_shape([value[0], log_prob])
    return value.min(0) - temperature * log_prob


def td_target(
    reward: Array, next_value: Array, terminated: Array, *, discount: float
) -> Array:
    """Target of Q(s, a): reward + discount (1 - terminated) V(s') (eq. 2), [B].

    There is no argument `truncated`, because a truncated step bootstraps like any other
    step, from the observation before the reset.

    Args:
        reward: [B] summed over the executed chunk.
        next_value: [B] V of the observation that followed, before any reset.
        terminated: [B] 1 where the task ended; nothing is bootstrapped.
        discount: per chunk, not per control step.
    """
    chex.assert_rank([reward, next_value, terminated], 1)
    chex.assert_equal_shape([reward, next_value, terminated])
    # A product with 0 alone would keep a NaN in the value of a terminal observation.
    next_value = jnp.where(terminated > 0, 0.0, next_value)
    return reward + discount * (1 - terminated) * next_value


def critic_loss(value: Array, target: Array) -> Array:
    """Half the mean squared error of each critic, summed over critics (eq. 5).

    Args:
        value: [N, B].
        target: [B], the same for all critics, or [N, B], one for each.
    """
    chex.assert_rank([value, target], [2, {1, 2}])
    if target.ndim == 1:
        chex.assert_equal_shape([value[0], target])
    else:
        chex.assert_equal_shape([value, target])
    return 0.5 * ((value - target) ** 2).mean(1).sum()


def actor_loss(value: Array, log_prob: Array, temperature: Array | float) -> Array:
    """Mean of temperature log pi(a | s) - Q(s, a) (eq. 7).

    Args:
        value: [B] Q of an action a that is a reparametrised sample of pi. The caller
            combines the critics; the paper takes their minimum.
        log_prob: [B].
    """
    chex.assert_rank([value, log_prob], 1)
    chex.assert_equal_shape([value, log_prob])
    return (temperature * log_prob - value).mean()


def temperature_loss(
    log_temperature: Array, log_prob: Array, *, target_entropy: float
) -> Array:
    """Mean of -alpha (log pi(a | s) + target entropy) with alpha = e^log_temperature.

    Eq. 18. Descending it lowers alpha if the entropy exceeds the target, and raises
    alpha if the entropy is below the target.

    Args:
        log_temperature: scalar; the logarithm is trained so that alpha stays positive.
        log_prob: [B]; the caller stops its gradient.
        target_entropy: in nats, of a whole chunk.
    """
    chex.assert_rank([log_temperature, log_prob], [0, 1])
    return -(jnp.exp(log_temperature) * (log_prob + target_entropy)).mean()

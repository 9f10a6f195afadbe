"""Properties of the losses of soft actor-critic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.learning import q_losses


def test_a_termination_is_not_bootstrapped_and_anything_else_is():
    """Targets are r, and r + discount V(s'); a time limit is not a termination."""
    target = q_losses.td_target(
        jnp.array([1.0, 1.0]),
        jnp.array([5.0, 5.0]),
        jnp.array([1.0, 0.0]),
        discount=0.9,
    )
    np.testing.assert_allclose(target, [1.0, 1.0 + 0.9 * 5.0])


def test_the_value_is_the_least_of_the_critics_plus_the_entropy():
    value = jnp.array([[3.0, -1.0], [2.0, 4.0]])
    soft = q_losses.soft_value(value, jnp.array([-1.0, 2.0]), 0.5)
    np.testing.assert_allclose(soft, [2.0 + 0.5, -1.0 - 1.0])


def test_every_critic_descends_its_own_error():
    """d loss / d Q_i(b) = (Q_i(b) - y(b)) / B, independent of the other critics."""
    value, target = jnp.array([[3.0, -1.0], [2.0, 4.0]]), jnp.array([1.0, 1.0])
    gradient = jax.grad(q_losses.critic_loss)(value, target)
    np.testing.assert_allclose(gradient, [[1.0, -1.0], [0.5, 1.5]])
    assert q_losses.critic_loss(value, target) == (4 + 4 + 1 + 9) / 4


def test_the_actor_descends_the_temperature_times_log_prob_less_the_value():
    value, log_prob = jnp.array([3.0, -1.0]), jnp.array([1.0, 2.0])
    loss = q_losses.actor_loss(value, log_prob, 0.5)
    np.testing.assert_allclose(loss, ((0.5 - 3.0) + (1.0 + 1.0)) / 2)


@pytest.mark.parametrize("excess", [-1.0, 0.0, 1.0])
def test_the_temperature_falls_where_there_is_more_entropy_than_wanted(excess):
    """Gradient alpha (entropy - target) of the log-temperature."""
    log_prob = -jnp.array([-2.0 + excess + 0.5, -2.0 + excess - 0.5])
    gradient = jax.grad(q_losses.temperature_loss)(
        jnp.log(0.3), log_prob, target_entropy=-2.0
    )
    np.testing.assert_allclose(gradient, 0.3 * excess, atol=1e-6)


def test_values_of_another_shape_are_refused_and_not_broadcast():
    row = jnp.zeros(3)
    with pytest.raises(AssertionError):
        q_losses.critic_loss(jnp.zeros((2, 3, 1)), row)
    with pytest.raises(AssertionError):
        q_losses.soft_value(jnp.zeros((2, 1)), row, 0.1)
    with pytest.raises(AssertionError):
        q_losses.td_target(row, row[:, None], row, discount=0.9)

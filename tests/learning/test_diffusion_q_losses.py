"""Losses of IDQL, DQL, QSM and DIPO on numbers that a reader can follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.learning import diffusion_q_losses as losses

TARGET = jnp.array([1.0, 2.0, 3.0, 10.0])


def test_the_expectile_loss_weighs_targets_above_the_value_more():
    """At V = 2 with expectile 0.8: 0.2 (1)^2, 0, 0.8 (1)^2 and 0.8 (8)^2."""
    loss = losses.expectile_loss(jnp.full(4, 2.0), TARGET, expectile=0.8)
    np.testing.assert_allclose(loss, (0.2 + 0 + 0.8 + 0.8 * 64) / 4, rtol=1e-6)


@pytest.mark.parametrize("expectile, minimum", [(0.5, 4.0), (0.999, 10.0)])
def test_its_minimum_is_the_mean_or_nears_the_largest_target(expectile, minimum):
    def slope(value):
        return jax.grad(
            lambda v: losses.expectile_loss(jnp.full(4, v), TARGET, expectile=expectile)
        )(value)

    assert slope(minimum - 0.1) < 0 < slope(minimum + 0.1)


def test_each_row_has_its_own_target():
    """Not the mean of the batch: V(s) descends towards the target of s."""
    grads = jax.grad(losses.expectile_loss)(TARGET - 1, TARGET, expectile=0.8)
    np.testing.assert_allclose(grads, np.full(4, -2 * 0.8 / 4), rtol=1e-6)


@pytest.mark.parametrize("swap, raised, other", [(False, 0, 1), (True, 1, 0)])
def test_one_critic_is_raised_and_the_other_one_is_its_scale(swap, raised, other):
    value = jnp.array([[1.0, 3.0], [-4.0, 2.0]])
    scale = np.abs(value[other]).mean()
    loss, grads = jax.value_and_grad(losses.normalized_value_loss)(
        value, jnp.asarray(swap)
    )
    np.testing.assert_allclose(loss, -value[raised].mean() / scale)
    expected = np.zeros((2, 2))
    expected[raised] = -1 / scale / 2
    np.testing.assert_allclose(grads, expected)
    # Its scale, and with it that of the rewards, cancels.
    np.testing.assert_allclose(
        losses.normalized_value_loss(7 * value, jnp.asarray(swap)), loss, rtol=1e-6
    )


def quadratic(peaks):
    """Critics -(a - peak)^2, summed over the entries of a chunk."""
    return lambda action: jnp.stack([-((action - p) ** 2).sum((1, 2)) for p in peaks])


ACTION = jnp.array([[[0.5], [0.1]], [[-0.5], [0.3]]])


def test_the_gradient_of_the_mean_value_is_that_of_every_row():
    gradient = losses.value_gradient(quadratic([0.2, 0.6]), ACTION)
    np.testing.assert_allclose(gradient, -2 * (ACTION - 0.4), rtol=1e-6)


def test_adam_moves_every_entry_towards_the_peak_of_the_lower_critic():
    """Its first steps have the length of the learning rate, whatever the gradient."""
    value_of = quadratic([0.2, 0.25])
    settings = dict(learning_rate=0.01, max_norm=10.0)
    once = losses.ascend(value_of, ACTION, num_steps=1, **settings)
    np.testing.assert_allclose(once - ACTION, 0.01 * np.sign(0.2 - ACTION), rtol=1e-3)
    often = losses.ascend(value_of, ACTION, num_steps=400, **settings)
    assert (value_of(often).min(0) > value_of(once).min(0)).all()
    np.testing.assert_allclose(often, 0.225, atol=0.03)


def test_ascended_actions_stay_within_their_bounds():
    action = losses.ascend(
        quadratic([5.0]), ACTION, num_steps=30, learning_rate=0.1, max_norm=10.0
    )
    np.testing.assert_array_equal(action, np.ones_like(ACTION))


def test_the_norm_of_the_gradient_is_bounded_over_the_whole_batch():
    """With a bound as small as Adam's epsilon, the steps shrink with the gradient."""
    value_of = quadratic([0.2])
    gradient = losses.value_gradient(value_of, ACTION)
    bounded = gradient * 1e-6 / jnp.sqrt((gradient**2).sum())
    moved = losses.ascend(
        value_of, ACTION, num_steps=1, learning_rate=1.0, max_norm=1e-6
    )
    expected = bounded / (jnp.abs(bounded) + 1e-5)
    np.testing.assert_allclose(moved - ACTION, expected, rtol=1e-3)

"""Closed forms of weighted regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.learning.regression import (
    lambda_targets,
    regression_weight,
    returns_to_go,
    value_regression_loss,
    weighted_clone_loss,
)


def column(*numbers):
    return jnp.array(numbers, jnp.float32)[:, None]


def test_returns_go_to_the_end_of_their_episode_and_no_further():
    """Three episodes: a termination, a time limit, and one that the roll-out cuts."""
    total, finished = returns_to_go(
        column(1, 2, 4, 8, 16, 32),
        column(0, 1, 0, 0, 0, 0),
        column(0, 0, 0, 1, 0, 0),
        discount=0.5,
    )
    np.testing.assert_allclose(total[:4, 0], [1 + 0.5 * 2, 2, 4 + 0.5 * 8, 8])
    np.testing.assert_array_equal(finished[:, 0], [1, 1, 1, 1, 0, 0])


def test_weights_are_exponentials_up_to_their_bound():
    advantage = jnp.array([-1.0, 0.0, 0.3, 2.0, 1e6])
    weight = regression_weight(advantage, beta=10.0, max_weight=100.0)
    expected = [np.exp(-10), 1, np.exp(3), 100, 100]
    np.testing.assert_allclose(weight, expected, rtol=1e-5)


REWARD = column(1, 2, 4, 8)
VALUE, NEXT = column(0.5, -1, 2, 3), column(-1, 7, 3, 5)
ENDS = {  # (terminated, truncated) of the second chunk
    "the episode goes on": (0, 0),
    "a termination": (1, 0),
    "a time limit": (0, 1),
}


def targets(terminated=0, truncated=0, **changes):
    settings = dict(discount=0.9, td_lambda=0.8) | changes
    return lambda_targets(
        REWARD,
        VALUE,
        NEXT,
        column(0, terminated, 0, 0),
        column(0, truncated, 0, 0),
        **settings,
    )[:, 0]


@pytest.mark.parametrize("end", ENDS)
def test_targets_stop_at_ends_and_bootstrap_after_time_limits(end):
    terminated, truncated = ENDS[end]
    got = targets(terminated, truncated)
    reward, value, following = (np.asarray(x)[:, 0] for x in (REWARD, VALUE, NEXT))
    bootstrap = np.array([1, 1 - terminated, 1, 1])
    error = reward + 0.9 * bootstrap * following - value
    trace = 0.9 * 0.8 * np.array([1, 1 - max(terminated, truncated), 1, 0])
    expected = np.zeros(5)
    for t in (3, 2, 1, 0):
        expected[t] = error[t] + trace[t] * expected[t + 1]
    np.testing.assert_allclose(got, value + expected[:4], rtol=1e-5)


def test_the_discount_and_lambda_change_the_targets():
    assert not np.allclose(targets(), targets(discount=0.99))
    one_step = REWARD[:, 0] + 0.9 * NEXT[:, 0]
    np.testing.assert_allclose(targets(td_lambda=0.0), one_step, rtol=1e-6)
    # The sum of rewards, and what V says of the end.
    monte_carlo = 1 + 0.9 * 2 + 0.9**2 * 4 + 0.9**3 * 8 + 0.9**4 * 5
    following = jnp.concatenate([VALUE[1:], NEXT[-1:]])
    zero = jnp.zeros_like(VALUE)
    got = lambda_targets(
        REWARD, VALUE, following, zero, zero, discount=0.9, td_lambda=1.0
    )
    np.testing.assert_allclose(got[0, 0], monte_carlo, rtol=1e-6)


def test_td_errors_are_scaled_if_asked():
    plain, scaled = targets(), targets(error_scale=0.95)
    value = VALUE[:, 0]
    np.testing.assert_allclose(scaled - value, 0.95 * (plain - value), rtol=1e-5)


@pytest.mark.parametrize("broadcast", [False, True])
def test_values_converge_to_their_own_targets_or_to_the_mean_of_all(broadcast):
    target = jnp.array([1.0, -3.0, 5.0])
    value = jnp.array([0.0, 0.5, -1.0])
    gradient = jax.jit(jax.grad(value_regression_loss), static_argnames="broadcast")
    for _ in range(200):
        value -= 0.5 * gradient(value, target, broadcast=broadcast)
    expected = np.full(3, 1.0) if broadcast else target
    np.testing.assert_allclose(value, expected, atol=1e-4)


def test_the_loss_is_the_mean_of_weighted_rows_that_count():
    def clone_loss(params, keys, obs, chunk):
        return params * obs["state"]

    def loss(counted=None):
        obs, weight = {"state": jnp.array([1.0, 2.0, 4.0])}, jnp.array([3.0, 0.5, 10.0])
        return weighted_clone_loss(
            clone_loss, 2.0, jnp.arange(3), obs, jnp.zeros(3), weight, counted
        )

    np.testing.assert_allclose(loss(), 2 * (3 + 1 + 40) / 3)
    np.testing.assert_allclose(loss(jnp.array([1.0, 1.0, 0.0])), 2 * (3 + 1) / 2)
    assert loss(jnp.zeros(3)) == 0

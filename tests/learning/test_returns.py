import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.learning import returns
from dppo_jax.learning.returns import init_reward_scale

gae = jax.jit(returns.gae)
scale_rewards = jax.jit(returns.scale_rewards)
ZERO = jnp.zeros((3, 1))


def column(*values):
    return jnp.array(values)[:, None]


def test_lambda_0_gives_one_step_errors_and_lambda_1_monte_carlo_returns():
    reward, value, next_value = column(1.0, 2.0, 3.0), ZERO + 0.5, ZERO + 4.0
    last = dict(terminated=column(0.0, 0.0, 1.0), truncated=ZERO, discount=0.9)
    td, _ = gae(reward, value, next_value, **last, gae_lambda=0.0)
    np.testing.assert_allclose(td[:, 0], [1 + 3.6 - 0.5, 2 + 3.6 - 0.5, 3 - 0.5], 1e-6)
    # Consistent values, V(next of t) = V(t + 1), telescope.
    values = column(5.0, 6.0, 7.0)
    following = column(6.0, 7.0, 8.0)
    advantage, target = gae(reward, values, following, **last, gae_lambda=1.0)
    returns = np.array([1 + 0.9 * 2 + 0.81 * 3, 2 + 0.9 * 3, 3])
    np.testing.assert_allclose(target[:, 0], returns, rtol=1e-6)
    np.testing.assert_allclose(advantage[:, 0], returns - [5, 6, 7], rtol=1e-5)


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))
    settings = dict(discount=0.9, gae_lambda=1.0)
    ended, _ = gae(one, zero, 5 * one, one, zero, **settings)
    cut, _ = gae(one, zero, 5 * one, zero, one, **settings)
    np.testing.assert_allclose(ended, 1.0)
    np.testing.assert_allclose(cut, 1.0 + 0.9 * 5.0)


@pytest.mark.parametrize("boundary", ["terminated", "truncated"])
def test_later_episodes_do_not_affect_earlier_advantages(boundary):
    flags = {"terminated": ZERO, "truncated": ZERO} | {boundary: column(0.0, 1.0, 0.0)}
    settings = dict(discount=0.9, gae_lambda=0.8)
    calm, wild = (
        gae(column(1.0, 1.0, last), ZERO, ZERO, **flags, **settings)[0]
        for last in (1.0, 1e6)
    )
    np.testing.assert_array_equal(calm[:2], wild[:2])
    np.testing.assert_allclose(calm[0], 1 + 0.9 * 0.8, rtol=1e-6)


def test_the_roll_out_ends_with_a_bootstrap():
    """An episode that continues bootstraps from V(next), as after a time limit."""
    advantage, _ = gae(
        column(1.0),
        column(0.0),
        column(10.0),
        column(0.0),
        column(0.0),
        discount=0.5,
        gae_lambda=0.9,
    )
    np.testing.assert_allclose(advantage, 6.0)


class RunningScale:
    """The scaling of Engstrom et al. in NumPy, one environment after another."""

    def __init__(self, num_envs):
        self.totals = np.zeros(num_envs)
        self.mean, self.variance, self.count = 0.0, 1.0, 1e-4

    def __call__(self, reward, first, discount):
        totals = []
        for r, f in zip(reward, first):
            self.totals = r + discount * self.totals * (1 - f)
            totals.append(self.totals)
        totals = np.concatenate(totals)
        count = self.count + totals.size
        delta = totals.mean() - self.mean
        squares = (
            self.variance * self.count
            + totals.var() * totals.size
            + delta**2 * self.count * totals.size / count
        )
        self.mean += delta * totals.size / count
        self.variance, self.count = squares / (count - 1), count
        return np.clip(reward / np.sqrt(self.variance + 1e-8), -10, 10)


def test_reward_scale_is_a_running_one_over_calls_and_resets():
    rng = np.random.default_rng(0)
    scale, running = init_reward_scale(3), RunningScale(3)
    for call in range(4):
        reward = rng.normal(size=(5, 3)).astype(np.float32) * 10.0**call
        first = (rng.random((5, 3)) < 0.3).astype(np.float32)
        scale, scaled = scale_rewards(scale, reward, first, discount=0.9)
        np.testing.assert_allclose(scaled, running(reward, first, 0.9), rtol=1e-4)
        np.testing.assert_allclose(scale.discounted, running.totals, rtol=1e-4)
    np.testing.assert_allclose(scale.weight, 60, rtol=1e-4)


def test_steady_rewards_get_returns_of_unit_spread():
    """After many calls the discounted sums of scaled rewards have a deviation of 1."""
    reward = jax.random.normal(jax.random.key(0), (2000, 4)) * 37.0
    scale, scaled = scale_rewards(
        init_reward_scale(4), reward, jnp.zeros_like(reward), discount=0.9
    )
    totals, total = [], np.zeros(4)
    for r in np.asarray(scaled):
        total = r + 0.9 * total
        totals.append(total)
    assert np.std(totals) == pytest.approx(1.0, rel=0.02)


def test_scaled_rewards_are_bounded():
    reward = jnp.zeros((100, 1)).at[-1].set(1e6)
    _, scaled = scale_rewards(
        init_reward_scale(1), reward, jnp.ones_like(reward), discount=0.9, bound=2.0
    )
    assert scaled[-1] == 2.0


def test_scaled_rewards_stay_within_ten_unless_told_otherwise():
    """Of 400 rewards only one is not zero, and it has 20 standard deviations."""
    for sign in (1.0, -1.0):
        reward = jnp.zeros((400, 1)).at[-1].set(sign * 1e6)
        first = jnp.ones_like(reward)
        _, scaled = scale_rewards(init_reward_scale(1), reward, first, discount=0.9)
        assert scaled[-1] == sign * 10.0


def test_the_first_reward_is_scaled_with_an_initial_variance_of_one():
    """Initially the moments have mean 0, variance 1 and a weight of w = 1e-4 samples.
    With the first reward r the variance is w (1 + r^2) / (1 + w - 1) = 1 + r^2."""
    reward = jnp.full((1, 1), 3.0)
    _, scaled = scale_rewards(init_reward_scale(1), reward, reward * 0, discount=0.9)
    np.testing.assert_allclose(scaled, 3 / np.sqrt(1 + 9), rtol=1e-3)


def test_rewards_of_zero_stay_zero_as_the_variance_vanishes():
    """After 20,000 of them the variance is 1e-4 / 20,000, less than epsilon."""
    reward = jnp.zeros((200, 100))
    scale, scaled = scale_rewards(
        init_reward_scale(100), reward, jnp.ones_like(reward), discount=0.9
    )
    assert 0 < scale.variance < 1e-8
    assert (scaled == 0).all()

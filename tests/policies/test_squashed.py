"""Properties of the squashed Gaussian policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.policies.squashed import squash, squashed_log_prob
from tests import tiny

MEAN, STD = jnp.full((1, 1, 1), 0.4), jnp.full((1, 1, 1), 0.7)


def test_the_density_integrates_to_one():
    action = jnp.linspace(-1, 1, 20_001)[1:-1]
    shape = (len(action), 1, 1)
    log_prob = squashed_log_prob(
        jnp.broadcast_to(MEAN, shape),
        jnp.broadcast_to(STD, shape),
        action.reshape(shape),
    )
    assert jnp.exp(log_prob).sum() * 1e-4 == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("slope_margin", [0.0, 1e-6])
def test_a_draw_has_the_density_of_its_action(slope_margin):
    """The log-probability is summed over the entries of a chunk, [B, Ta, Da] -> [B]."""
    mean, std, draw = jax.random.normal(jax.random.key(0), (3, 5, 2, 3))
    std = jnp.exp(0.3 * std)
    action, log_prob = squash(mean, std, draw, slope_margin=slope_margin)
    np.testing.assert_allclose(action, np.tanh(mean + std * draw), rtol=1e-6)
    again = squashed_log_prob(mean, std, action)
    np.testing.assert_allclose(log_prob, again, rtol=1e-3)


def test_saturated_actions_keep_an_exact_density_and_a_gradient():
    """log(1 - tanh(u)^2) is 2 log 2 - 2 |u| far out, where tanh is 1 in float32."""

    def log_prob(mean):
        one = jnp.ones((1, 1, 1))
        return squash(mean * one, one, 0 * one)[1][0]

    for mean in (30.0, -30.0):
        expected = -0.5 * np.log(2 * np.pi) - (2 * np.log(2) - 60)
        np.testing.assert_allclose(log_prob(mean), expected, rtol=1e-6)
        np.testing.assert_allclose(jax.grad(log_prob)(mean), np.sign(mean) * 2)


def test_the_policy_acts_by_its_median_or_by_draws_of_each_row():
    policy = tiny.tiny_squashed_policy()
    params = policy.init(jax.random.key(0), tiny.OBS)
    keys = jax.random.split(jax.random.key(1), 3)
    draws, log_prob = policy.sample(params, keys, tiny.OBS)
    first = {"state": tiny.OBS["state"][:1]}
    np.testing.assert_allclose(
        policy.act(params, keys[:1], first)[0], draws[:1], rtol=1e-6
    )
    np.testing.assert_allclose(
        policy.clone_loss(params, keys, tiny.OBS, draws), -log_prob, rtol=1e-3
    )
    median, _ = policy.act(params, keys, tiny.OBS, deterministic=True)
    many = jax.vmap(lambda key: policy.act(params, jax.random.split(key, 3), tiny.OBS))
    below = many(jax.random.split(jax.random.key(2), 2000))[0] < median
    np.testing.assert_allclose(below.mean(0), 0.5, atol=0.05)

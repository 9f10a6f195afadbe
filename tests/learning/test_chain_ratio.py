"""One ratio for a chain, and the distance to the actions of the frozen policy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.learning import chain_losses
from dppo_jax.policies import PolicyParams
from tests import tiny

# Two chains of three moves.
OLD = jnp.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
CHANGE = jnp.array([[0.1, -0.2, 0.3], [-0.1, 0.1, -0.4]])
STEP = jnp.tile(jnp.arange(3), (2, 1))
ADVANTAGE = jnp.array([2.0, -1.0])


def loss(change, advantage=ADVANTAGE, *, clip=1.0, **settings):
    return chain_losses.chain_surrogate_loss(
        OLD + change,
        STEP,
        OLD,
        advantage,
        num_tuned_steps=3,
        clip=clip,
        **settings,
    )


def test_the_log_ratio_of_a_chain_is_the_mean_over_its_moves_and_its_start():
    """0.2 and -0.4 in all, over three moves and a start that does not change."""
    found, info = loss(CHANGE)
    ratio = np.exp([0.2 / 4, -0.4 / 4])
    expected = -(ratio * np.asarray(ADVANTAGE)).mean()
    assert found == pytest.approx(expected, rel=1e-5)
    assert info.ratio == pytest.approx(ratio.mean(), rel=1e-5)
    kl = (ratio - 1 - np.log(ratio)).mean()
    assert info.approx_kl == pytest.approx(kl, abs=1e-6)
    assert info.clip_fraction == 0


def test_a_chain_is_clipped_as_a_whole():
    """Moves may leave the range as long as their mean does not."""
    _, inside = loss(jnp.array([[0.4, -0.4, 0.0], [0.3, 0.3, -0.6]]), clip=0.01)
    assert inside.clip_fraction == 0
    found, outside = loss(CHANGE, clip=0.01)
    assert outside.clip_fraction == 1
    # The good chain got likelier and the bad one less likely: both are left alone.
    assert found == pytest.approx(-(2 * 1.01 - 0.99) / 2, rel=1e-5)
    gradient = jax.grad(lambda change: loss(change, clip=0.01)[0])(CHANGE)
    np.testing.assert_array_equal(gradient, 0)
    # Those that went the wrong way are pulled back, all moves alike.
    gradient = jax.grad(lambda change: loss(change, -ADVANTAGE, clip=0.01)[0])(CHANGE)
    pull = np.exp([0.2 / 4, -0.4 / 4]) * ADVANTAGE / 2 / 4
    np.testing.assert_allclose(gradient, np.tile(pull[:, None], 3), rtol=1e-5)


@pytest.mark.parametrize("num_moves", [1, 2, 4])
def test_the_density_of_the_start_only_counts_in_the_divisor(num_moves):
    """With the density of the noise in both scores, over K + 1, it is the same."""
    chain = jax.random.normal(jax.random.key(0), (5, num_moves + 1))
    old = jax.random.normal(jax.random.key(1), (5, num_moves))
    new = old + 0.3 * jax.random.normal(jax.random.key(2), (5, num_moves))
    prior = -0.5 * chain[:, 0] ** 2 - 0.5 * np.log(2 * np.pi)
    scores = [(prior + x.sum(1)) / (num_moves + 1) for x in (new, old)]
    _, info = chain_losses.chain_surrogate_loss(
        new,
        jnp.tile(jnp.arange(num_moves), (5, 1)),
        old,
        jnp.ones(5),
        num_tuned_steps=num_moves,
        clip=0.1,
    )
    expected = float(jnp.exp(scores[0] - scores[1]).mean())
    assert info.ratio == pytest.approx(expected, rel=1e-5)
    means = (new - old).sum(1) / num_moves
    without = jnp.exp(means * num_moves / (num_moves + 1)).mean()
    assert info.ratio == pytest.approx(float(without), rel=1e-5)


def test_moves_that_are_no_longer_tuned_have_no_share_in_the_ratio():
    """The last two: 0.1 and -0.3 in all, over two moves and their start."""
    change = CHANGE.at[:, 0].set(1e3)
    _, info = loss(change, num_active=jnp.array(2))
    assert info.ratio == pytest.approx(np.exp([0.1 / 3, -0.3 / 3]).mean(), rel=1e-5)


def chain_loss(tuned, policy, chain, old, *, advantage=jnp.array([1.0, -2.0, 0.5])):
    log_prob = chain_losses.mean_log_prob(
        policy.chain_log_prob(tuned, chain, tiny.OBS), bounds=None
    )
    step = jnp.broadcast_to(jnp.arange(policy.num_tuned_steps), log_prob.shape)
    return chain_losses.chain_surrogate_loss(
        log_prob,
        step,
        old,
        advantage,
        num_tuned_steps=policy.num_tuned_steps,
        clip=0.5,
    )[0]


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_gradient_is_that_of_finite_differences(num_steps):
    """In three directions through all parameters, velocity and noise, away from the
    policy that sampled, so that ratios differ from one."""
    policy = tiny.tiny_flow_policy(num_steps, mean_clip=None)
    params = policy.init(jax.random.key(0), tiny.OBS)
    params = policy.prepare(jax.random.key(1), params, tiny.OBS)
    keys = jax.random.split(jax.random.key(2), 3)
    chain, log_prob = policy.sample(params, keys, tiny.OBS)
    old = chain_losses.mean_log_prob(log_prob, bounds=None)
    leaves, tree = jax.tree.flatten(params.tuned)

    def direction(seed):
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        return tree.unflatten(
            [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
        )

    def moved(tuned, towards, distance):
        return jax.tree.map(lambda x, d: x + distance * d, tuned, towards)

    tuned = moved(params.tuned, direction(3), 0.02)
    value = jax.jit(lambda tuned: chain_loss(tuned, policy, chain, old))
    gradient = jax.jit(jax.grad(value))(tuned)
    for seed in (4, 5, 6):
        towards = direction(seed)
        slope = sum(
            (g * d).sum()
            for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(towards))
        )
        ends = [value(moved(tuned, towards, h)) for h in (3e-3, -3e-3)]
        found = float(ends[0] - ends[1]) / 6e-3
        assert found == pytest.approx(float(slope), rel=0.02, abs=1e-3)


def test_the_gradient_of_a_flow_of_one_step_is_known():
    """dL/dmean = -A (x' - mean) / std^2 / ((K + 1) D), and a mean over three chains."""
    x, mean = jnp.array([0.3, -0.2, 0.5]), jnp.array([0.2, 0.1, 0.4])
    entries, std, advantage = 4, 0.1, jnp.array([1.0, -2.0, 0.5])

    def surrogate(mean):
        z = (x - mean) / std
        each = -0.5 * z**2 - np.log(std * np.sqrt(2 * np.pi))
        # One entry of four depends on the mean.
        log_prob = each[:, None] / entries
        old = jax.lax.stop_gradient(log_prob)
        step = jnp.zeros((3, 1), jnp.int32)
        return chain_losses.chain_surrogate_loss(
            log_prob, step, old, advantage, num_tuned_steps=1, clip=0.01
        )[0]

    expected = -advantage * (x - mean) / std**2 / (2 * entries) / 3
    np.testing.assert_allclose(jax.grad(surrogate)(mean), expected, rtol=1e-4)


KEYS = jax.random.split(jax.random.key(1), 3)


@functools.partial(jax.jit, static_argnums=2)
def distance(tuned, params, policy):
    return chain_losses.action_distance(tuned, policy, params, KEYS, tiny.OBS)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_the_distance_and_its_gradient_begin_at_zero(num_steps):
    policy = tiny.tiny_flow_policy(num_steps)
    params = policy.init(jax.random.key(0), tiny.OBS)
    params = policy.prepare(jax.random.key(1), params, tiny.OBS)
    value, gradient = jax.jit(jax.value_and_grad(distance), static_argnums=2)(
        params.tuned, params, policy
    )
    assert value == pytest.approx(0, abs=1e-12)
    for x in jax.tree.leaves(gradient):
        np.testing.assert_allclose(x, 0, atol=1e-6)


def test_the_distance_is_between_actions_from_the_same_noise_and_pulls_one_side():
    """Two constant velocities, 0.1 and 0.3, from the same noise: 0.2 apart."""
    policy = tiny.tiny_flow_policy(2, mean_clip=None)
    params = policy.init(jax.random.key(0), tiny.OBS)

    def constant(value):
        def leaf(x):
            return jnp.full_like(x, value) if x.shape == (tiny.CHUNK,) else 0 * x

        return jax.tree.map(leaf, params.tuned)

    params = PolicyParams(constant(0.1), constant(0.3))
    value = distance(params.tuned, params, policy)
    assert value == pytest.approx(0.2**2, rel=1e-4)
    gradient = jax.jit(jax.grad(distance, argnums=1), static_argnums=2)(
        params.tuned, params, policy
    )
    assert all((x == 0).all() for x in jax.tree.leaves(gradient.base))
    assert distance(params.base, params, policy) == pytest.approx(0, abs=1e-12)

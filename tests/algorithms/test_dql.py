"""The actor's loss of DQL."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.algorithms import dql
from dppo_jax.learning.diffusion_q import whole
from tests import tiny
from tests.algorithms.test_diffusion_q import (
    CRITIC,
    batch,
    constant_policy,
    gradient,
    learner,
    start,
)

KEY = jax.random.key(1)
ROW = jax.tree.map(lambda x: x[0], batch())


@pytest.mark.parametrize("swap", [False, True])
def test_the_loss_clones_stored_actions_and_raises_one_critic(swap):
    """Actions are m: the loss is the mean of (m - a)^2 - eta Q_i(m) / mean |Q_j|."""
    state = start(learner("dql"))
    loss = dql.actor_loss(constant_policy(), CRITIC, eta=0.7, swap=swap)

    def value(m):
        action = jnp.full((3, 2, 1), m)
        return np.asarray(CRITIC.apply(state.critic.params, ROW.obs, action))

    scale = np.abs(value(0.3)[0 if swap else 1]).mean()

    def expected(m):
        raised = value(m)[1 if swap else 0].mean()
        return ((m - ROW.action) ** 2).mean() - 0.7 * raised / scale

    found, slope = jax.jit(jax.value_and_grad(loss))(jnp.float32(0.3), state, ROW, KEY)
    np.testing.assert_allclose(found, expected(0.3), rtol=1e-5)
    difference = (expected(0.301) - expected(0.299)) / 0.002
    np.testing.assert_allclose(slope, difference, rtol=1e-2)


def test_with_the_quirk_the_generated_action_is_cloned():
    """Of actions that are always m, this loss is zero and has no gradient."""
    state = start(learner("dql"))
    loss = dql.actor_loss(constant_policy(), CRITIC, eta=0.0, clone_generated=True)
    found = jax.jit(jax.value_and_grad(loss))(jnp.float32(0.3), state, ROW, KEY)
    assert found == (0, 0)
    quirky = learner("dql", eta=0.0, reference_quirks=("clone_generated",))
    _, metrics, *_ = jax.jit(quirky.update)(start(quirky), batch(), KEY)
    assert metrics["actor_loss"] == 0


def test_the_coin_shows_both_critics():
    state = start(learner("dql"))
    loss = jax.jit(dql.actor_loss(constant_policy(), CRITIC, eta=1.0))
    seen = {float(loss(0.3, state, ROW, key)) for key in jax.random.split(KEY, 12)}
    assert len(seen) == 2


def test_the_gradient_goes_through_the_whole_chain():
    """Compared with a finite difference along a random direction, for fixed draws."""
    policy = tiny.tiny_diffusion_policy(tiny.NUM_STEPS, final_clip=None, x0_clip=None)
    subject = learner("dql", policy, eta=5.0)
    state = start(subject)
    loss = jax.jit(dql.actor_loss(policy, CRITIC, eta=5.0, swap=False))
    params = state.actor.params
    draws = np.random.default_rng(0)
    way = jax.tree.map(lambda x: draws.normal(size=x.shape).astype("f"), params)

    def along(step):
        moved = jax.tree.map(lambda x, d: x + step * d, params, way)
        # The critic that normalises has no gradient, so keep its value fixed.
        keys = jax.random.split(jax.random.split(KEY, 3)[0], 3)
        action, _ = policy.act(whole(moved), keys, ROW.obs)
        value = CRITIC.apply(state.critic.params, ROW.obs, action)
        scale = np.abs(value[1]).mean()
        return loss(moved, state, ROW, KEY), scale, value[0].mean()

    grads = jax.jit(jax.grad(loss))(params, state, ROW, KEY)
    slope = sum(
        (g * d).sum() for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(way))
    )
    (high, scale_high, up), (low, scale_low, down) = along(1e-3), along(-1e-3)
    _, scale, _ = along(0.0)
    fixed = [
        total + 5.0 * value / own - 5.0 * value / scale
        for total, value, own in ((high, up, scale_high), (low, down, scale_low))
    ]
    np.testing.assert_allclose(slope, (fixed[0] - fixed[1]) / 2e-3, rtol=2e-2)
    new, *_ = jax.jit(subject.update)(state, batch(), KEY)
    assert all((np.abs(x) > 0).any() for x in jax.tree.leaves(gradient(new.actor)))

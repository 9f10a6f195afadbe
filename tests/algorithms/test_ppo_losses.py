"""Losses over the moves of a chain, on moves that a policy sampled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.learning import chain_losses
from tests import tiny

KEYS = jax.random.split(jax.random.key(1), 3)


def test_the_cloning_penalty_is_smallest_for_the_teacher_itself():
    policy = tiny.tiny_diffusion_policy()
    teacher = policy.init(jax.random.key(0), tiny.OBS).base
    obs = {"state": jnp.tile(tiny.OBS["state"], (50, 1, 1))}

    def penalty(params):
        keys = jax.random.split(jax.random.key(1), len(obs["state"]))
        return chain_losses.cloning_penalty(params, policy, teacher, keys, obs)

    at_teacher = jax.jit(penalty)(teacher)
    for seed in (1, 2, 3):
        stranger = policy.init(jax.random.key(seed), tiny.OBS).base
        assert jax.jit(penalty)(stranger) > at_teacher


def test_minibatches_pair_every_step_with_its_own_move():
    """The policy gradient with K' = 2 is the mean of those of single moves."""
    policy = tiny.tiny_diffusion_policy()
    params = policy.init(jax.random.key(0), tiny.OBS)
    chain, log_prob = policy.sample(params, KEYS, tiny.OBS)
    log_prob = chain_losses.mean_log_prob(log_prob)
    advantage = jnp.array([1.0, -2.0, 0.5])
    settings = dict(clip_top=0.1, clip_base=0.1, clip_rate=1.0, normalize=False)

    def loss(row, step):
        rows, steps = jnp.array(row), jnp.array(step)
        return chain_losses.policy_loss(
            params.tuned,
            policy,
            {"state": tiny.OBS["state"][rows]},
            x=chain[rows, steps],
            next_x=chain[rows, steps + 1],
            step=steps,
            old_log_prob=log_prob[rows, steps],
            advantage=advantage[rows],
            denoising_discount=0.5,
            **settings,
        )[0]

    # Ratios are one: a pair's loss is minus its advantage, halved per move left.
    assert loss([0], [1]) == pytest.approx(-1.0, abs=1e-4)
    assert loss([0], [0]) == pytest.approx(-0.5, abs=1e-4)
    both = loss([0, 1, 1], [0, 0, 1])
    assert both == pytest.approx((-0.5 + 1.0 + 2.0) / 3, abs=1e-4)


def test_dropped_moves_have_no_share_in_the_loss():
    policy = tiny.tiny_diffusion_policy()
    params = policy.init(jax.random.key(0), tiny.OBS)
    stranger = policy.init(jax.random.key(5), tiny.OBS).tuned
    chain, log_prob = policy.sample(params, KEYS, tiny.OBS)
    log_prob = chain_losses.mean_log_prob(log_prob)

    def loss(rows, steps, num_active=None):
        return chain_losses.policy_loss(
            stranger,
            policy,
            {"state": tiny.OBS["state"][rows]},
            x=chain[rows, steps],
            next_x=chain[rows, steps + 1],
            step=steps,
            old_log_prob=log_prob[rows, steps],
            advantage=jnp.array([1.0, -2.0, 0.5])[rows],
            clip_top=0.1,
            clip_base=0.01,
            clip_rate=1.0,
            denoising_discount=0.9,
            quantiles=(0.1, 0.9),
            num_active=num_active,
        )

    rows = jnp.array([0, 1, 2, 0, 1, 2])
    steps = jnp.array([1, 1, 1, 0, 0, 0])
    annealed = loss(rows, steps, jnp.array(1))
    # A chain of which one move is left has the full clip range in that move, as the
    # last of two has, so dropping the rows by hand gives the same.
    alone = loss(rows[:3], steps[:3])
    for a, b in zip(jax.tree.leaves(annealed), jax.tree.leaves(alone)):
        np.testing.assert_allclose(a, b, rtol=1e-4)


LOG_PROB = jnp.array([[[3.0, -9.0], [1.0, 0.0]]])  # [B, Ta, Da]


@pytest.mark.parametrize(
    "settings, expected",
    [
        (dict(bounds=None), -1.25),
        (dict(bounds=None, horizon=1), -3.0),
        (dict(), (2.0 - 5.0 + 1.0 + 0.0) / 4),  # entries are clamped to [-5, 2]
        (dict(horizon=1), (2.0 - 5.0) / 2),
        (dict(bound_entries=False), -1.25),
        (dict(bounds=(-1.0, 1.0), bound_entries=False), -1.0),  # the mean is
    ],
)
def test_the_log_prob_of_a_move_is_a_mean_clamped_as_the_settings_say(
    settings, expected
):
    mean = chain_losses.mean_log_prob(LOG_PROB, **settings)
    np.testing.assert_allclose(mean, [expected], rtol=1e-6)

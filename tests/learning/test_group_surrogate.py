"""Advantages within groups, and the actor's update of OGPO, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.diffusion.chain import Sample, gaussian_log_prob
from dppo_jax.learning import optimizers
from dppo_jax.learning.diffusion_q import DiffusionQState
from dppo_jax.learning.group_surrogate import (
    consensus_advantage,
    group_advantage,
    surrogate_update,
)
from dppo_jax.types import Transition
from tests import tiny

# Two critics, one observation, three chunks.
VALUE = jnp.array([[[1.0, 2.0, 6.0]], [[3.0, 6.0, 9.0]]])
KEY = jax.random.key(1)
STD, GROUP = 0.2, 4
COST = np.array([2.0, 1.0])  # c in Q_m(s, a) = c_m s a
STATE = np.array([1.0, -3.0, 0.5, 7.0])
# Draws of the chains of two observations, 8 in all, the same in every call.
DRAWS = np.random.default_rng(0).normal(size=8).astype("f")


def test_an_advantage_is_relative_to_the_group():
    """Means over critics are 2, 4 and 7.5, and their mean is 4.5."""
    advantage = group_advantage(VALUE)
    np.testing.assert_allclose(advantage, [[-2.5, -0.5, 3.0]], rtol=1e-6)
    np.testing.assert_allclose(advantage.sum(-1), 0, atol=1e-6)


def test_a_consensus_takes_the_size_that_all_critics_grant():
    """Advantages are -2, -1, 3 and -3, 0, 3: the second has no sign in common."""
    np.testing.assert_allclose(consensus_advantage(VALUE), [[-2.0, 0.0, 3.0]])
    opposed = VALUE.at[1].multiply(-1)
    np.testing.assert_array_equal(consensus_advantage(opposed), [[0.0, 0.0, 0.0]])


def test_one_critic_or_equal_ones_need_no_consensus():
    for value in (VALUE[:1], np.repeat(VALUE[:1], 3, axis=0)):
        np.testing.assert_allclose(
            consensus_advantage(value), group_advantage(value), rtol=1e-6
        )


@pytest.mark.parametrize("advantage", [group_advantage, consensus_advantage])
def test_what_depends_on_the_observation_alone_changes_no_advantage(advantage):
    value = jax.random.normal(KEY, (3, 5, 4))
    shifted = value + jnp.arange(5.0)[:, None]
    np.testing.assert_allclose(advantage(shifted), advantage(value), atol=1e-5)
    size = np.abs(advantage(value))
    assert (size <= np.abs(group_advantage(value)) + 1e-6).all()


class Product:
    """Q_m(s, a) = c_m s a, of one action."""

    def apply(self, params, obs, action):
        return params[:, None] * obs["state"][:, 0, 0] * action[:, 0, 0]


def one_move():
    """A chain of one move from 0 to N(m, STD^2), of one action; m is the parameter."""

    def sample(params, keys, obs, **options):
        assert len(keys) == len(obs["state"]) == len(DRAWS)
        end = params.tuned + STD * jnp.asarray(DRAWS)[:, None, None, None]
        chain = jnp.concatenate([jnp.zeros_like(end), end], axis=1)
        return Sample(chain, gaussian_log_prob(end, params.tuned, STD))

    def chain_log_prob(params, chain, obs):
        return gaussian_log_prob(chain[:, 1:], params, STD)

    def clone_loss(params, keys, obs, action):
        return (params - action[:, 0, 0]) ** 2

    return tiny.tiny_diffusion_policy()._replace(
        sample=sample,
        chain_log_prob=chain_log_prob,
        clone_loss=clone_loss,
        num_tuned_steps=1,
    )


TRAINER = optimizers.trainer(learning_rate=0.1)
CRITIC_TRAINER = optimizers.trainer(learning_rate=0.0)


def learn(mean, target, *, num_states=2, clip=0.01, **more):
    """State and metrics after one update on four observations."""
    update = surrogate_update(
        one_move(),
        Product(),
        TRAINER,
        group_size=GROUP,
        num_states=num_states,
        clip=clip,
        advantage="mean",
        target_rate=0.25,
        **more,
    )
    state = DiffusionQState(
        actor=TRAINER.init(jnp.float32(mean)),
        critic=CRITIC_TRAINER.init(jnp.zeros(2)),
        target=jnp.asarray(COST, jnp.float32),
        updates=jnp.int32(0),
        target_actor=jnp.float32(target),
    )
    obs = {"state": jnp.asarray(STATE, jnp.float32)[:, None, None]}
    batch = Transition(
        obs=obs,
        action=jnp.array([0.5, 1.0, 2.0, -1.0])[:, None, None],
        reward=jnp.zeros(4),
        next_obs=obs,
        terminated=jnp.zeros(4),
        truncated=jnp.zeros(4),
        extras={"return_to_go": jnp.array([5.0, 3.0, -jnp.inf, 4.0])},
    )
    return jax.jit(update)(state, batch, KEY)


def gradient(state):
    """The gradient of the first update, from Adam's first moment."""
    return float(state.actor.optimizer[0].mu) / 0.1


def expected(mean, target, clip):
    """Loss, gradient and ratios of the first and the third observation."""
    chunk = target + STD * DRAWS
    value = COST.mean() * np.repeat(STATE[[0, 2]], GROUP) * chunk
    groups = value.reshape(2, GROUP)
    advantage = (groups - groups.mean(1, keepdims=True)).ravel()
    # Of one move and the start, so half of the difference of two log-densities.
    log_ratio = ((chunk - target) ** 2 - (chunk - mean) ** 2) / (2 * STD**2) / 2
    ratio = np.exp(log_ratio)
    clipped = np.clip(ratio, 1 - clip, 1 + clip)
    objective = np.minimum(ratio * advantage, clipped * advantage)
    slope = ratio * advantage * (chunk - mean) / STD**2 / 2
    slope[clipped * advantage < ratio * advantage] = 0
    return -objective.mean(), -slope.mean(), ratio, advantage


def test_the_first_gradient_is_that_of_the_log_density_times_the_advantage():
    """At equal parameters every ratio is one: -mean A (x' - m) / STD^2 / 2."""
    state, metrics = learn(0.3, 0.3)
    loss, slope, _, advantage = expected(0.3, 0.3, 0.01)
    np.testing.assert_allclose(gradient(state), slope, rtol=1e-4)
    np.testing.assert_allclose(metrics["actor_loss"], loss, atol=1e-6)
    np.testing.assert_allclose(metrics["ratio"], 1, atol=1e-6)
    np.testing.assert_allclose(
        metrics["advantage_size"], np.abs(advantage).mean(), rtol=1e-5
    )
    assert metrics["clip_fraction"] == 0


@pytest.mark.parametrize("mean", [0.33, 0.25])
def test_ratios_are_clipped_where_the_advantage_gains_from_them(mean):
    state, metrics = learn(mean, 0.3, clip=0.02)
    loss, slope, ratio, advantage = expected(mean, 0.3, 0.02)
    # Some are clipped, and some outside of the range still learn.
    outside = np.abs(ratio - 1) > 0.02
    gains = (ratio - 1) * advantage > 0
    assert (outside & gains).any() and (outside & ~gains).any() and (~outside).any()
    np.testing.assert_allclose(gradient(state), slope, rtol=1e-3)
    np.testing.assert_allclose(metrics["actor_loss"], loss, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["clip_fraction"], outside.mean(), rtol=1e-6)


def test_the_target_actor_follows_after_the_update():
    """Adam's first step has the length of the learning rate."""
    state, _ = learn(0.3, 0.3)
    assert abs(gradient(state)) > 0.1
    moved = -0.1 * np.sign(gradient(state))
    np.testing.assert_allclose(state.actor.params, 0.3 + moved, rtol=1e-4)
    np.testing.assert_allclose(state.target_actor, 0.3 + 0.25 * moved, rtol=1e-4)


@pytest.mark.parametrize(
    "least, squares",
    [
        (None, (0.04, 0.49, 2.89, 1.69)),  # (0.3 - a)^2 of all four
        (4.0, (0.04, 1.69)),  # of the first and the last
        (6.0, (0.0,)),  # of none
    ],
)
def test_chunks_with_enough_return_are_cloned(least, squares):
    plain, _ = learn(0.3, 0.3)
    state, metrics = learn(0.3, 0.3, clone_coef=2.0, clone_return=least)
    np.testing.assert_allclose(metrics["clone_loss"], np.mean(squares), rtol=1e-5)
    chunks = {None: (0.5, 1.0, 2.0, -1.0), 4.0: (0.5, -1.0), 6.0: (0.3,)}[least]
    slope = 2.0 * 2 * (0.3 - np.mean(chunks))
    np.testing.assert_allclose(
        gradient(state), gradient(plain) + slope, rtol=1e-4, atol=1e-5
    )

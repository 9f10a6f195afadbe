"""Targets over a whole buffer, as DAWR computes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax import replay
from dppo_jax.learning import optimizers
from dppo_jax.learning.advantage_regression import advantage_regression, buffer_targets
from dppo_jax.learning.regression import lambda_targets
from dppo_jax.learning.regression_iteration import RegressionState, Rows
from tests import tiny

CRITIC = tiny.tiny_critic()
PARAMS = tiny.random_params(CRITIC, tiny.OBS)
ENVS, LENGTH = 2, 6
SETTINGS = dict(discount=0.9, td_lambda=0.8)


def rows(num_chunks, *, seed=0, first=0):
    """Random rows, [T, B, ...]; an episode ends now and then."""
    draws = np.random.default_rng(seed)
    state = draws.normal(size=(20, ENVS, 1, 2)).astype(np.float32)
    part = slice(first, first + num_chunks)
    flags = (draws.random((2, 20, ENVS)) < 0.2).astype(np.float32)
    shape = (num_chunks, ENVS, tiny.CHUNK, tiny.ACTION_DIM)
    given = Rows(
        obs={"state": state[part]},
        chunk=np.zeros(shape, np.float32),
        reward=draws.normal(size=(20, ENVS)).astype(np.float32)[part],
        next_obs={"state": (state + 1.0)[part]},
        terminated=flags[0, part],
        truncated=(flags[1] * (1 - flags[0]))[part],
    )
    return jax.tree.map(jnp.asarray, given)


def one_row():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), rows(1))


def in_time(kept, **changes):
    """Targets of rows in the order of time."""
    value, following = (
        CRITIC.apply(PARAMS, {"state": obs["state"].reshape(-1, 1, 2)}).reshape(
            -1, ENVS
        )
        for obs in (kept.obs, kept.next_obs)
    )
    return lambda_targets(
        kept.reward,
        value,
        following,
        kept.terminated,
        kept.truncated,
        **(SETTINGS | changes),
    )


@pytest.mark.parametrize("total", [4, 13])
def test_targets_of_a_ring_are_those_of_its_rows_in_time(total):
    """Also where the ring is not full, and where new rows have replaced old ones."""
    buffer = replay.init(one_row(), ENVS, ENVS * LENGTH)
    for first in range(0, total, 3):
        buffer = replay.insert(buffer, rows(min(3, total - first), first=first))
    target, value = buffer_targets(CRITIC, PARAMS, buffer, **SETTINGS)
    num_kept = min(total, LENGTH)
    expected = in_time(rows(num_kept, first=total - num_kept))
    slots = (np.arange(total - num_kept, total)) % LENGTH
    np.testing.assert_allclose(target[:, slots].T, expected, rtol=1e-5, atol=1e-6)
    obs = buffer.items.obs["state"]
    direct = CRITIC.apply(PARAMS, {"state": obs.reshape(-1, 1, 2)})
    np.testing.assert_allclose(value.reshape(-1), direct, rtol=1e-5)


def make_learner(**changes):
    settings = dict(
        num_envs=ENVS,
        capacity=ENVS * LENGTH,
        batch_size=16,
        actor_updates=3,
        critic_updates=2,
        critic_warmup=1,
        reward_scale=1.0,
        beta=10.0,
        max_weight=100.0,
        reset_at_iteration=False,
        discount=0.5,
        td_lambda=0.95,
    )
    still = optimizers.trainer(learning_rate=0.0)
    return advantage_regression(
        tiny.tiny_diffusion_policy(), CRITIC, still, still, **(settings | changes)
    )


def memory_of(learner, given=None):
    """Six rows, and a V with known parameters."""
    memory = learner.init(jax.random.key(0), tiny.OBS, one_row())
    critic = memory.critic._replace(params=PARAMS)
    given = rows(LENGTH) if given is None else given
    return learner.store(memory._replace(critic=critic), given, None)[0]


def updated(learner, *iterations, given=None):
    """States and metrics after an update in each of these iterations."""
    policy = tiny.tiny_diffusion_policy()
    params = policy.init(jax.random.key(1), tiny.OBS).tuned
    actor = optimizers.trainer(learning_rate=0.0).init(params)
    memory = memory_of(learner, given)
    update = jax.jit(
        lambda iteration: learner.update(
            RegressionState(actor, memory, None, None, iteration),
            (),
            jax.random.key(2),
        )
    )
    return [update(jnp.int32(i)) for i in iterations]


def test_an_iteration_updates_v_and_after_the_warm_up_the_policy():
    """The discount is that of the settings."""
    during, after = updated(make_learner(), 0, 1)
    for (state, metrics), num_updates in ((during, 0), (after, 3)):
        assert state.memory.critic.optimizer[0].count == 2
        assert state.actor.optimizer[0].count == num_updates
        assert (metrics["policy_loss"] > 0) == (num_updates > 0)
    target = in_time(rows(LENGTH), discount=0.5, td_lambda=0.95)
    np.testing.assert_allclose(after[1]["target"], target.mean(), rtol=1e-5)


def test_minibatches_without_finite_gradients_are_counted_and_left_out_of_the_means():
    """The reward of one row is NaN, and so are its target and advantage."""
    given = rows(LENGTH)
    given = given._replace(reward=given.reward.at[0, 0].set(jnp.nan))
    learner = make_learner(batch_size=4, actor_updates=9, critic_updates=9)
    (_, during), (_, after) = updated(learner, 0, 1, given=given)
    assert (during["num_updates"], after["num_updates"]) == (9, 18)
    assert 0 < during["skipped_updates"] < 9
    assert during["skipped_updates"] < after["skipped_updates"] < 18
    for name in ("policy_loss", "value_loss", "weight"):
        assert np.isfinite(after[name]) and after[name] > 0


def test_quirks_fix_the_discount_and_compare_values_with_all_targets():
    """Rewards are V(s), so the target of a row that terminates is its own V."""
    kept = rows(LENGTH)
    value = CRITIC.apply(PARAMS, {"state": kept.obs["state"].reshape(-1, 1, 2)})
    kept = kept._replace(
        reward=value.reshape(-1, ENVS),
        terminated=jnp.ones((LENGTH, ENVS)).at[0].set(0),
        truncated=jnp.zeros((LENGTH, ENVS)),
    )
    quirks = ("fixed_targets", "broadcast_targets")
    learner = make_learner(quirks=quirks, critic_updates=1, batch_size=512)
    ((_, metrics),) = updated(learner, 0, given=kept)
    target = in_time(kept, discount=0.99, td_lambda=0.95, error_scale=0.95)
    np.testing.assert_allclose(metrics["target"], target.mean(), rtol=1e-5)
    bias = value.mean() - target.mean()
    of_all = 0.5 * (value.var() + target.var() + bias**2)
    np.testing.assert_allclose(metrics["value_loss"], of_all, rtol=0.2)
    assert 0.5 * ((value - target.reshape(-1)) ** 2).mean() < 0.5 * of_all


def test_an_episode_that_a_reset_breaks_off_is_cut_in_the_buffer():
    given = rows(LENGTH)
    for reset in (False, True):
        kept = memory_of(make_learner(reset_at_iteration=reset)).replay.items
        expected = np.asarray(given.truncated)
        if reset:
            expected = np.vstack([expected[:-1], 1 - given.terminated[-1:]])
        np.testing.assert_array_equal(kept.truncated.T, expected)

"""Noise on actions that grows over the iterations of training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.envs import chunk_actions, time_limit, vectorize
from dppo_jax.envs.action_noise import DisturbedState, disturb_actions
from dppo_jax.errors import SettingsError
from dppo_jax.rollout import env_keys, restart
from dppo_jax.training import parallel
from tests import tiny
from tests.envs.conftest import make_counter
from tests.tiny_regression import make_tiny_drwr

# Iterations of two chunks of two actions; episodes of three chunks.
RAMP = dict(scale=0.5, start=1, ramp=2, num_chunks=2)
LEVELS = [0, 0, 0.25, 0.25, 0.5, 0.5, 0.5, 0.5]
NUM_ENVS = 400


def sums(**changes):
    """Environments whose state is the sum of the actions that act."""
    env = chunk_actions(time_limit(make_counter(), 6), 2)
    return disturb_actions(vectorize(env, NUM_ENVS), **{**RAMP, **changes})


def keys(number=0):
    return env_keys(jax.random.key(number), NUM_ENVS)


@pytest.fixture(scope="module")
def played():
    """The environment, its state and its outcomes after eight chunks of no action."""
    env = sums()
    step, state, outcomes = jax.jit(env.step), env.reset(keys()), []
    for _ in LEVELS:
        state, outcome = step(state, jnp.zeros((NUM_ENVS, 2, 1)))
        outcomes.append(outcome)
    assert step._cache_size() == 1  # Levels are data, not constants.
    return env, state, outcomes


def test_noise_begins_and_rises_with_the_iterations(played):
    _, _, outcomes = played
    levels = [outcome.metrics["action_noise"] for outcome in outcomes]
    np.testing.assert_allclose(levels, np.repeat(LEVELS, NUM_ENVS).reshape(8, -1))
    # The reward of a chunk is the sum of its two actions.
    for outcome, level in zip(outcomes, LEVELS):
        assert abs(outcome.reward.std() - np.sqrt(2) * level) < 0.1 * level + 1e-9
    late = np.concatenate([outcome.reward for outcome in outcomes[4:]])
    assert abs(late.mean()) < 0.07


def test_the_noise_of_chunks_and_environments_differs(played):
    _, _, outcomes = played
    late = np.stack([outcome.reward for outcome in outcomes[4:]])
    assert len(np.unique(late)) == late.size
    assert np.abs(np.corrcoef(late) - np.eye(4)).max() < 0.2


def test_new_episodes_go_on_with_the_level_and_new_environments_begin(played):
    env, state, _ = played
    np.testing.assert_array_equal(state.age, 8)
    going_on = restart(env, state, keys(1))
    np.testing.assert_array_equal(going_on.age, 8)
    np.testing.assert_array_equal(going_on.obs["state"], 0)
    np.testing.assert_array_equal(env.reset(keys()).age, 0)
    plain = vectorize(make_counter(), NUM_ENVS)
    assert tiny.same(restart(plain, None, keys(1)), plain.reset(keys(1)))


def test_without_a_ramp_the_noise_is_full_at_once():
    env = sums(start=0, ramp=0)
    state = env.reset(keys())
    _, outcome = jax.jit(env.step)(state, jnp.zeros((NUM_ENVS, 2, 1)))
    np.testing.assert_allclose(outcome.metrics["action_noise"], 0.5)


def test_without_noise_the_environment_is_the_same_object():
    env = tiny.point_env()
    assert disturb_actions(env, scale=0, start=5, ramp=5, num_chunks=4) is env


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(scale=-0.1), "rollout.action_noise=-0.1 must be 0 or positive"),
        (dict(scale=float("inf")), "rollout.action_noise=inf"),
        (dict(start=-1), "rollout.action_noise_start=-1 must not be negative"),
        (dict(ramp=-1), "rollout.action_noise_ramp=-1 must not be negative"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(SettingsError, match=message):
        sums(**change)


class Restarted(Exception):
    """An iteration began new episodes without forgetting the level."""


@pytest.mark.parametrize(
    "make",
    [
        lambda env: tiny.make_tiny_ppo(env=env),
        lambda env: tiny.make_tiny_sac(env, reset_at_iteration=True),
        lambda env: make_tiny_drwr(env=env, reset_at_iteration=True),
    ],
    ids=["on-policy", "off-policy", "regression"],
)
def test_every_kind_of_iteration_restarts(make):
    def found(state, keys):
        raise Restarted

    env = tiny.point_env()._replace(restart=found)
    algorithm = make(env)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    with pytest.raises(Restarted):
        jax.eval_shape(algorithm.step, state)


def test_devices_share_its_state_as_the_environments():
    """Every leaf has the environments as its leading axis."""
    env = disturb_actions(tiny.point_env(), scale=0.1, start=0, ramp=0, num_chunks=4)
    algorithm = tiny.make_tiny_ppo(env=env)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    specs = algorithm.split(state, 1).env
    assert isinstance(specs, DisturbedState)
    assert all(spec == parallel.SPLIT for spec in jax.tree.leaves(specs))
    assert {x.shape[0] for x in jax.tree.leaves(state.env)} == {env.num_envs}

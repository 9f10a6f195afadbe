"""Properties of recordings: true rewards and ends, whole episodes, no bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.demonstrations import (
    concatenate,
    in_task_units,
    make_recorder,
    random_bounds,
)
from dppo_jax.envs import time_limit, vectorize
from dppo_jax.errors import SettingsError
from dppo_jax.normalize import Normalizer
from tests import tiny

MAX_STEPS = 8


def raw_env(num_envs=4, lengths=(3, 99)):
    """Episodes that end by themselves after 3 steps, or are cut after 8."""
    return vectorize(time_limit(tiny.point_task(lengths), MAX_STEPS), num_envs)


def noise(params, keys, obs):
    """Uniform actions up to `params`."""

    def draw(key):
        shape = (tiny.ACTION_DIM,)
        return jax.random.uniform(key, shape, minval=-params, maxval=params)

    return jax.vmap(draw)(keys), ()


def record(num_control_steps=50, *, seed=0, env=None):
    recorder = make_recorder(
        env or raw_env(), noise, num_control_steps=num_control_steps
    )
    return recorder(jnp.float32(1.0), jax.random.key(seed))


@pytest.mark.parametrize("num_control_steps", [1, 8, 9, 50])
def test_episodes_are_whole_and_hold_at_least_the_steps_that_were_asked_for(
    num_control_steps,
):
    episodes = record(num_control_steps)
    lengths = episodes.episode_lengths
    assert set(lengths) <= {3, MAX_STEPS}
    assert num_control_steps <= lengths.sum() < num_control_steps + MAX_STEPS
    assert len(episodes.actions) == len(episodes.rewards) == lengths.sum()


def test_terminals_mark_exactly_the_episodes_that_ended_by_themselves():
    episodes = record()
    lengths = episodes.episode_lengths
    expected = np.zeros(lengths.sum(), bool)
    expected[np.cumsum(lengths)[lengths == 3] - 1] = True
    np.testing.assert_array_equal(episodes.terminals, expected)
    assert 0 < expected.sum() < len(lengths)


def test_rewards_and_observations_are_those_of_the_recorded_actions():
    episodes = record()
    action = episodes.actions[:, 0]
    np.testing.assert_allclose(episodes.rewards, -((action - tiny.GOAL) ** 2), 1e-5)
    start = np.cumsum(episodes.episode_lengths) - episodes.episode_lengths
    before = np.concatenate([[0], action[:-1]])
    before[start] = 0  # The observation is (last action, steps taken).
    count = np.concatenate([np.arange(n) for n in episodes.episode_lengths])
    state = episodes.observations["state"]
    np.testing.assert_array_equal(state, np.stack([before, count], axis=1))


def test_actions_differ_and_the_same_key_gives_the_same_data():
    one, again, other = record(seed=0), record(seed=0), record(seed=1)
    assert len(np.unique(one.actions)) == one.actions.size
    np.testing.assert_array_equal(one.actions, again.actions)
    np.testing.assert_array_equal(one.episode_lengths, again.episode_lengths)
    assert not np.isin(other.actions, one.actions).any()


def test_short_episodes_are_not_favoured():
    """Half of all episodes are short. Of the first to end, 8 of 9 would be short."""
    lengths = record(4000, env=raw_env(16, lengths=(1, 8))).episode_lengths
    assert abs((lengths == 1).mean() - 0.5) < 4 * 0.5 / np.sqrt(len(lengths))


def test_rounds_share_one_program():
    traces = []

    def act(params, keys, obs):
        traces.append(1)
        return noise(params, keys, obs)

    recorder = make_recorder(
        raw_env(), act, num_control_steps=100
    )  # several rounds of 4
    recorder(jnp.float32(1.0), jax.random.key(0))
    once = len(traces)
    recorder(jnp.float32(0.5), jax.random.key(1))
    assert len(traces) == once <= 3


def test_recorded_episodes_can_be_joined():
    joined = concatenate([record(10, seed=0), record(10, seed=1)], "two records")
    assert joined.terminals.dtype == bool and joined.rewards.dtype == np.float32


def test_exploring_actions_are_clipped_to_the_bounds():
    """Noise far beyond the bounds of [-2, 6] is clipped to them, in task units."""
    normalizer = Normalizer(*map(np.float32, ([0, 0], [4, 4], [-2], [6])))
    policy = tiny.tiny_gaussian_policy(fixed_std=5.0)
    params = policy.init(jax.random.key(0), tiny.OBS)
    obs = {"state": jnp.full((200, 2), 2.0)}
    act = in_task_units(policy.act, normalizer)
    action, _ = act(params, jax.random.split(jax.random.key(1), 200), obs)
    assert action.shape == (200, tiny.ACTION_DIM)
    assert action.min() == -2 and action.max() == 6
    assert len(np.unique(action)) > 10


def test_a_policy_sees_normalised_observations():
    """The policy observes the middle of the bounds as zero."""
    normalizer = Normalizer(*map(np.float32, ([0, 10], [4, 30], [-1], [1])))
    policy = tiny.tiny_gaussian_policy(fixed_std=0.1)
    params, keys = policy.init(jax.random.key(0), tiny.OBS), jax.random.key(1)[None]
    act = in_task_units(policy.act, normalizer)
    action, _ = act(params, keys, {"state": jnp.array([[2.0, 20.0]])})
    chunk, _ = policy.act(params, keys, {"state": jnp.zeros((1, 1, 2))})
    np.testing.assert_allclose(action, chunk[:, 0], atol=1e-6)


def test_random_bounds_are_those_of_random_actions():
    bounds = random_bounds(raw_env(), jax.random.key(0), num_control_steps=500)
    np.testing.assert_array_equal(bounds.obs_min[1], 0)
    np.testing.assert_array_equal(bounds.obs_max[1], MAX_STEPS - 1)
    assert -1 <= bounds.obs_min[0] < -0.9 and 0.9 < bounds.obs_max[0] <= 1
    np.testing.assert_array_equal(bounds.action_min, [-1])
    np.testing.assert_array_equal(bounds.action_max, [1])


@pytest.mark.parametrize("steps", [0, -5])
def test_bounds_need_random_steps(steps):
    message = f"rollout.random_steps={steps} must be at least 1, because the bounds"
    with pytest.raises(SettingsError, match=message):
        random_bounds(raw_env(), jax.random.key(0), num_control_steps=steps)


def test_what_cannot_be_recorded_is_refused():
    endless = vectorize(tiny.point_task(), 4)
    with pytest.raises(ValueError, match="needs a time limit"):
        make_recorder(endless, noise, num_control_steps=10)
    with pytest.raises(
        ValueError, match="num_control_steps=0 to record must be at least 1"
    ):
        make_recorder(raw_env(), noise, num_control_steps=0)

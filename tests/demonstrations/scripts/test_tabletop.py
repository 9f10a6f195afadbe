"""Demonstrations of the manipulation tasks, most of them in a task without physics."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.demonstrations.scripts import hands, tabletop
from dppo_jax.demonstrations.scripts.tabletop import (
    SCRIPTS,
    reach_of,
    scripted_episodes,
)
from dppo_jax.envs import make_task
from dppo_jax.envs.robots.kinematics import Pose
from dppo_jax.envs.tasks import lift
from dppo_jax.errors import SettingsError
from dppo_jax.types import Env, TimeStep
from experiments.configs.manipulation import make_config

REACH = reach_of({})


class State(NamedTuple):
    """A hand that does as it is told, and a cube that sticks to closed fingers."""

    hand: jax.Array
    yaw: jax.Array
    cube: jax.Array
    success: jax.Array
    obs: dict[str, jax.Array]


def make_env():
    """Lift without physics, with the observations that the script reads."""

    def at(hand, yaw, cube, success):
        turn = jnp.array([jnp.cos(yaw / 2), jnp.sin(yaw / 2), 0.0, 0.0])
        rest = jnp.array([0.0, 0.0, 0.0, 1.0])
        parts = [hand, turn, jnp.zeros(2), cube, rest, hand - cube]
        return State(hand, yaw, cube, success, {"state": jnp.concatenate(parts)})

    def reset(key):
        place = 0.03 * jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        cube = jnp.array([place[0], place[1], lift.TABLE + lift.CUBE])
        return at(jnp.array([-0.1, 0.0, 1.0]), jnp.float32(0), cube, jnp.float32(0))

    def step(state, action):
        move = REACH[0] * action[:3]
        is_held = jnp.linalg.norm(state.hand - state.cube) < 0.012
        cube = state.cube + jnp.where(is_held & (action[6] > 0), move, 0.0)
        solved = (cube[2] > lift.TABLE + lift.HEIGHT).astype(jnp.float32)
        success = jnp.maximum(state.success, solved)
        yaw = state.yaw + REACH[1] * action[5]
        state = at(state.hand + move, yaw, cube, success)
        return state, TimeStep(
            obs=state.obs,
            reward=solved,
            terminated=jnp.float32(0),
            truncated=jnp.float32(0),
            metrics={"success": success},
            trace={},
        )

    return Env(reset, step, {"state": (19,)}, (7,), None)


@pytest.fixture(scope="module")
def env():
    return make_env()


def show(env, num_episodes=6, seed=0, **changes):
    settings = dict(max_steps=100, noise=0.1, steps_after_success=5) | changes
    return scripted_episodes(env, SCRIPTS["lift"], num_episodes, seed, **settings)


@pytest.fixture(scope="module")
def played(env):
    return show(env)


def test_episodes_end_some_steps_after_success(played):
    episodes = played.episodes
    assert len(episodes.episode_lengths) == 6 == len(played.styles)
    ends = np.cumsum(episodes.episode_lengths)
    for begin, end in zip(ends - episodes.episode_lengths, ends):
        rewards = episodes.rewards[begin:end]
        assert rewards.argmax() == len(rewards) - 6 and rewards[-1] == 1
    assert episodes.observations["state"].shape == (ends[-1], 19)
    assert episodes.actions.shape == (ends[-1], 7)
    assert np.abs(episodes.actions).max() <= 1
    assert not episodes.terminals.any()


def test_replaying_the_actions_gives_the_states(env, played):
    """Observations are those before the action with the same index."""
    length = played.episodes.episode_lengths[0]
    states = played.episodes.observations["state"][:length]
    step = jax.jit(jax.vmap(env.step))
    # The first key of the round, as `make_play` splits it.
    _, round_key = jax.random.split(jax.random.key(0))
    env_key = jax.random.split(round_key, 3)[0]
    state = jax.vmap(env.reset)(jax.random.split(env_key, 6)[:1])
    for index in range(10):
        np.testing.assert_allclose(state.obs["state"][0], states[index], atol=1e-5)
        state, _ = step(state, jnp.asarray(played.episodes.actions[index : index + 1]))


def test_a_seed_repeats_its_episodes(env, played):
    again = show(env)
    np.testing.assert_array_equal(again.episodes.actions, played.episodes.actions)
    other = show(env, seed=1)
    assert not np.array_equal(other.episodes.actions[:10], played.episodes.actions[:10])


def test_noise_makes_episodes_differ_and_is_recovered_from(env):
    calm, noisy = (show(env, noise=noise) for noise in (0.0, 0.3))
    assert calm.num_solved == calm.num_tried == 6
    assert noisy.num_solved >= 5
    assert len(noisy.episodes.actions) > len(calm.episodes.actions)


def test_failures_are_kept_on_demand(env):
    """Nothing is solved within ten steps, so episodes have all of them."""
    played = show(env, max_steps=10, success_only=False)
    assert played.num_solved == 0
    np.testing.assert_array_equal(played.episodes.episode_lengths, [10] * 6)
    with pytest.raises(RuntimeError, match="0 of 6 .*success_only=False"):
        show(env, max_steps=10)


def test_wrong_numbers_are_named(env):
    for name, value in (
        ("num_episodes", 0),
        ("noise", -0.1),
        ("steps_after_success", -1),
    ):
        with pytest.raises(SettingsError, match=f"{name}={value}"):
            show(env, **{name: value})


def test_the_way_to_a_goal_is_full_speed_or_all_of_the_way():
    down = hands.pointing_down(jnp.float32(0))
    here = Pose(jnp.zeros(3), down)
    far = hands.towards(here, Pose(jnp.array([0.3, -0.15, 0.0]), down), (0.015, 0.15))
    np.testing.assert_allclose(far, [1, -0.5, 0, 0, 0, 0], atol=1e-5)
    turned = hands.pointing_down(jnp.float32(0.03))
    near = hands.towards(here, Pose(jnp.array([0, 0, 0.006]), turned), (0.015, 0.15))
    np.testing.assert_allclose(near, [0, 0, 0.4, 0, 0, 0.2], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_scripts_hardly_ever_fail_within_the_time_limits_of_fast(name):
    max_steps = make_config(name, "fast").env.max_steps
    played = scripted_episodes(
        make_task(name, engine="mujoco"), SCRIPTS[name], 64, 3, max_steps=max_steps
    )
    assert played.num_solved >= 0.95 * played.num_tried
    assert len(np.unique(played.styles)) == SCRIPTS[name].num_styles


@pytest.mark.parametrize("group", [128, 4])
def test_recorded_actions_solve_the_task_again_from_their_own_starts_only(
    env, played, monkeypatch, group
):
    """Also if the last group of episodes is not full."""
    monkeypatch.setattr(tabletop, "MAX_ENVS", group)
    actions, lengths = played.episodes.actions, played.episodes.episode_lengths.copy()
    again = tabletop.replayed_success(env, actions, lengths, played.starts)
    assert again.tolist() == [1] * 6
    # The first episode gets another start, and the last one is cut.
    starts = jnp.concatenate(
        [jax.random.split(jax.random.key(9), 1), played.starts[1:]]
    )
    lengths[-1] = 3
    again = tabletop.replayed_success(env, actions[: lengths.sum()], lengths, starts)
    assert again.tolist() == [0, 1, 1, 1, 1, 0]

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.envs import build, host_vec_env, make_host_task
from dppo_jax.envs.adapters.gymnasium import make_gymnasium
from tests import tiny
from tests.envs.adapters.laws import Mixed, bounds, run_env, trains_and_evaluates

KEY = jax.random.key(0)


def make(task, num_envs=1, *, processes=0, options=None, **settings):
    task = make_host_task(f"gymnasium:{task}", processes=processes, **(options or {}))
    return host_vec_env(task, num_envs, **settings)


def seed_of(key, index):
    """The seed that `host_vec_env` derives from the key for an environment."""
    return int(jax.random.bits(jax.random.fold_in(key, index))) >> 1


@pytest.mark.parametrize("processes", [0, 2])
def test_trajectories_are_those_of_the_library(processes):
    """Observations, rewards and ends, over auto-resets, bit for bit in float32."""
    num_envs, steps = 3, 60
    actions = np.asarray(
        jax.random.uniform(KEY, (steps, num_envs, 1, 1), minval=-3, maxval=3)
    )
    obs, step = run_env(
        make("InvertedPendulum-v5", num_envs, processes=processes), actions
    )
    assert step.terminated.sum() > num_envs
    for i in range(num_envs):
        raw = gymnasium.make("InvertedPendulum-v5")
        raw.reset(seed=seed_of(KEY, i))
        for t in range(steps):
            seen, reward, terminated, truncated, _ = raw.step(actions[t, i, 0])
            assert step.reward[t, i] == np.float32(reward)
            assert step.terminated[t, i] == terminated
            assert step.truncated[t, i] == truncated
            # The last observation is returned, though the next episode has begun.
            np.testing.assert_array_equal(
                step.obs["state"][t, i, 0], seen.astype(np.float32)
            )
            if terminated or truncated:
                seen, _ = raw.reset()
            np.testing.assert_array_equal(
                obs["state"][t, i, 0], seen.astype(np.float32)
            )


def test_a_chunk_sums_rewards_and_stops_at_an_end():
    chunk = np.full((1, 1, 40, 1), 3.0)  # The pendulum falls before 40 steps.
    step = run_env(make("InvertedPendulum-v5", chunk=40), chunk)[1]
    raw, total, ended = gymnasium.make("InvertedPendulum-v5"), 0.0, False
    raw.reset(seed=seed_of(KEY, 0))
    while not ended:
        seen, reward, ended, _, info = raw.step(np.float32([3.0]))
        total += reward
    assert step.terminated[0, 0] == 1 and 0 < total < 40
    assert step.reward[0, 0] == np.float32(total)
    np.testing.assert_array_equal(step.obs["state"][0, 0, 0], seen.astype(np.float32))
    survived = np.float32(info["reward_survive"])
    assert step.metrics["reward_survive"][0, 0] == survived


@pytest.mark.parametrize("limit, own", [(5, 100), (100, 5)])
def test_our_time_limit_and_that_of_gymnasium_truncate(limit, own):
    env = make("Pendulum-v1", max_steps=limit, options=dict(max_episode_steps=own))
    step = run_env(env, np.zeros((11, 1, 1, 1)))[1]
    np.testing.assert_array_equal(step.truncated[:, 0], [0, 0, 0, 0, 1] * 2 + [0])
    assert not step.terminated.any()


def test_observations_and_actions_are_normalised():
    plain, scaled = (
        run_env(make("Pendulum-v1", normalizer=normalizer), actions)[1]
        for normalizer, actions in (
            (None, np.full((3, 1, 1, 1), 2.0)),
            (bounds(3, 1, scale=4.0), np.full((3, 1, 1, 1), 0.5)),
        )
    )
    np.testing.assert_array_equal(plain.reward, scaled.reward)
    np.testing.assert_allclose(
        plain.obs["state"] / 4, scaled.obs["state"], rtol=1e-5, atol=1e-5
    )


def test_a_configuration_makes_it_by_name():
    config = build.default_config()
    config.task, config.max_steps, config.history = "gymnasium:Pendulum-v1", 6, 2
    config.options.processes = 0
    config.options.g = 5.0  # further options go to Gymnasium
    env = build.make_env(config, normalizer=bounds(3, 1), chunk=3, num_envs=2)
    assert env.obs_shape == {"state": (2, 3)} and env.action_shape == (3, 1)
    assert env.max_steps == 2 and env.num_envs == 2


def test_ppo_and_evaluation_run_through_it():
    env = make(
        "Pendulum-v1",
        3,
        **dict(processes=2, chunk=2, history=2, max_steps=6),
        normalizer=bounds(3, 1, scale=8.0),
    )
    assert trains_and_evaluates(env)["eval/episode_length"] == 6


@pytest.mark.parametrize(
    "task, options, message",
    [
        ("Hoper-v5", {}, "gymnasium:Hoper-v5 cannot be made.*Hoper"),
        ("no_package:Hopper-v5", {}, "cannot be made.*no_package"),
        ("Pendulum-v1", dict(length=1.0), "cannot be made.*length"),
        ("MountainCar-v0", {}, "Discrete.*action space is a Box"),
        ("CarRacing-v3", {}, "cannot be made|only vectors can be a state"),
        ("Pendulum-v1", dict(obs_keys=("angle",)), "no observation angle"),
    ],
)
def test_what_cannot_be_made_is_refused(task, options, message):
    with pytest.raises(ValueError, match=message):
        make(task, options=options)


def test_a_picture_in_a_dictionary_is_refused():
    with pytest.raises(ValueError, match="picture.*only vectors.*obs_keys"):
        host_vec_env(make_gymnasium(Mixed, processes=0), 1)


def test_no_warning_of_gymnasium_reaches_the_user(recwarn):
    env = make("InvertedPendulum-v5")
    jax.block_until_ready(env.step(tiny.start(env, KEY), jnp.ones((1, 1, 1))))
    assert not recwarn.list

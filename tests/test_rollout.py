import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.rollout import env_keys, episode_means, first_episodes, rollout
from dppo_jax.types import OF_ENVIRONMENT
from tests import tiny

KEY = jax.random.key(0)


def constant(keys, obs):
    """Three actions, of which the environment executes two."""
    chunk = jnp.array([0.1, 0.2, 0.9])[:, None]
    return jnp.broadcast_to(chunk, (len(keys), 3, 1)), {"said": jnp.ones(len(keys))}


def random(keys, obs):
    draw = jax.vmap(lambda key: jax.random.normal(key, (tiny.CHUNK, 1)))
    return draw(keys), ()


def run(act, num_chunks=3, lengths=(3,)):
    env = tiny.point_env(2, lengths=lengths)
    start = env.reset(env_keys(KEY, 2))
    return rollout(env, act, start, env_keys(jax.random.key(1), 2), num_chunks)


def test_a_roll_out_executes_the_start_of_every_chunk_and_records_what_follows():
    state, transitions, metrics = run(constant)
    # Episodes of 3 control steps: a chunk of two, then a chunk cut after one.
    np.testing.assert_array_equal(transitions.terminated[:, 0], [0, 1, 0])
    reward = -np.array([0.4**2 + 0.3**2, 0.4**2, 0.4**2 + 0.3**2])
    np.testing.assert_allclose(transitions.reward[:, 0], reward, rtol=1e-5)
    np.testing.assert_allclose(
        transitions.next_obs["state"][:, 0, 0], [[0.2, 2], [0.1, 3], [0.2, 2]]
    )
    np.testing.assert_allclose(transitions.action[0, 0, :, 0], [0.1, 0.2])
    assert transitions.action.shape == (3, 2, 2, 1)
    np.testing.assert_array_equal(transitions.extras["said"], np.ones((3, 2)))
    np.testing.assert_allclose(metrics["episode_return"][1], reward[:2].sum(), 1e-5)


def test_the_policy_sees_the_next_observation_or_that_of_a_reset():
    state, transitions, _ = run(constant)
    obs, following = transitions.obs["state"], transitions.next_obs["state"]
    np.testing.assert_array_equal(obs[1], following[0])
    np.testing.assert_array_equal(obs[2], jnp.zeros_like(obs[2]))  # a new episode
    np.testing.assert_array_equal(state.obs["state"], following[-1])


def test_two_half_roll_outs_equal_a_whole_one():
    env, keys = tiny.point_env(2, lengths=(3,)), env_keys(KEY, 2)
    start = env.reset(keys)
    whole = rollout(env, constant, start, keys, 4)[1]
    state, first, _ = rollout(env, constant, start, keys, 2)
    _, second, _ = rollout(env, constant, state, keys, 2)
    for a, b, c in zip(*(jax.tree.leaves(x) for x in (whole, first, second))):
        np.testing.assert_array_equal(a, jnp.concatenate([b, c]))


def test_the_caller_chooses_what_to_record():
    env, keys = tiny.point_env(2, lengths=(3,)), env_keys(KEY, 2)
    _, kept, _ = rollout(
        env,
        constant,
        env.reset(keys),
        keys,
        3,
        record=lambda transition, outcome: (transition.reward, outcome.truncated),
    )
    _, transitions, _ = run(constant)
    np.testing.assert_array_equal(kept[0], transitions.reward)
    np.testing.assert_array_equal(kept[1], transitions.truncated)


def test_every_step_of_every_environment_has_its_own_key():
    action = np.asarray(run(random, num_chunks=5)[1].action)
    assert len(np.unique(action)) == action.size


def test_an_environment_does_not_depend_on_the_number_of_others():
    def actions(num_envs):
        env = tiny.point_env(num_envs, lengths=(1, 3, 9))
        start = env.reset(env_keys(KEY, num_envs))
        keys = env_keys(jax.random.key(1), num_envs)
        return rollout(env, random, start, keys, 4)[1]

    few, many = actions(3), actions(8)
    first = jax.tree.map(lambda x: x[:, :3], many)
    assert tiny.same(few, first)


def test_first_episodes_are_those_of_a_roll_out_up_to_their_ends():
    env, keys = tiny.point_env(6, lengths=(1, 3, 9), max_steps=8), env_keys(KEY, 6)
    episodes = first_episodes(env, random, keys, record=lambda step, _: step.reward)
    assert episodes.kept.shape == (env.max_steps, 6)
    assert set(np.asarray(episodes.length)) == {1, 2, 4}  # chunks of two
    for i, length in enumerate(np.asarray(episodes.length)):
        total = np.asarray(episodes.kept)[:length, i].sum()
        assert np.isclose(episodes.metrics["episode_return"][i], total, rtol=1e-5)
    # The same start and keys, but one episode at a time.
    for i in range(6):
        one = tiny.point_env(1, lengths=(1, 3, 9), max_steps=8)
        alone = first_episodes(one, random, keys[i : i + 1])
        assert alone.length[0] == episodes.length[i]
        for name, value in alone.metrics.items():
            np.testing.assert_allclose(value[0], episodes.metrics[name][i], rtol=1e-6)


def test_first_episodes_end_with_the_longest_of_them():
    """No steps are taken after the end of all episodes."""
    steps = []

    def counting(keys, obs):
        jax.debug.callback(lambda: steps.append(1))
        return constant(keys, obs)

    env = tiny.point_env(3, lengths=(3,), max_steps=100)
    episodes = jax.jit(functools.partial(first_episodes, env, counting))(
        env_keys(KEY, 3)
    )
    jax.block_until_ready(episodes)
    jax.effects_barrier()
    assert len(steps) == 2  # chunks of two make three control steps


def test_one_step_without_a_number_shows_in_the_means_over_all_steps():
    """Also if no episode ends there."""
    done, reward = jnp.array([[0.0], [1.0]]), jnp.array([[3.0], [5.0]])
    obs = {"state": jnp.array([[[[-1.0, 0.5]]], [[[0.0, 2.5]]]])}

    def means(reward=reward, obs=obs):
        found = episode_means(done, reward, obs, {"x": reward})
        return [float(found[name]) for name in OF_ENVIRONMENT]

    assert means() == [1.0, 4.0]
    magnitude, mean = means(reward=reward.at[0].set(jnp.nan))
    assert magnitude == 1.0 and np.isnan(mean)
    obs = jax.tree.map(lambda x: x.at[0, 0, 0, 1].set(jnp.nan), obs)
    assert np.isnan(means(obs=obs)[0])


@pytest.mark.parametrize(
    "make",
    [
        tiny.make_tiny_ppo,
        tiny.make_tiny_sac,
        *(functools.partial(tiny.make_tiny_diffusion_q, x) for x in tiny.DIFFUSION_Q),
    ],
)
def test_algorithms_check_what_the_environment_returns_before_their_losses(make):
    algorithm = make()
    names = list(OF_ENVIRONMENT)
    assert list(algorithm.finite[: len(names)]) == names
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    assert set(algorithm.finite) <= set(jax.eval_shape(algorithm.step, state)[1])

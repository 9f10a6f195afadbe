import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.envs.core import vectorize
from dppo_jax.envs.wrappers import time_limit
from tests import tiny


def test_auto_reset_keeps_the_terminal_observation(counter):
    env = vectorize(counter(end=2.0), 2)
    state = tiny.start(env, jax.random.key(0))
    action = jnp.array([[2.0], [1.0]])
    state, step = jax.jit(env.step)(state, action)
    np.testing.assert_array_equal(step.obs["state"], [[2.0], [1.0]])
    np.testing.assert_array_equal(step.terminated, [1.0, 0.0])
    # Environment 0 is reset, environment 1 continues.
    np.testing.assert_array_equal(state.obs["state"], [[0.0], [1.0]])


def test_episode_metrics_include_the_last_step_and_start_anew(counter):
    env = vectorize(counter(end=3.0), 1)
    state = tiny.start(env, jax.random.key(0))
    seen = []
    for _ in range(5):
        state, step = env.step(state, jnp.ones((1, 1)))
        names = ("episode_return", "episode_length")
        seen.append(tuple(float(step.metrics[name][0]) for name in names))
    assert seen == [(1, 1), (2, 2), (3, 3), (1, 1), (2, 2)]


def test_truncation_also_resets(counter):
    env = vectorize(time_limit(counter(), 2), 1)
    state = tiny.start(env, jax.random.key(0))
    for expected in (0.0, 1.0, 0.0, 1.0):
        state, step = env.step(state, jnp.ones((1, 1)))
        assert step.truncated[0] == expected and step.terminated[0] == 0.0


def test_an_environment_does_not_depend_on_the_number_of_others(counter):
    """Environment i of 3 is environment i of 5, across resets."""

    def starts(num_envs):
        env = vectorize(counter(end=3.0, random_start=True), num_envs)

        def step(state, _):
            state, time_step = env.step(state, jnp.ones((num_envs, 1)))
            return state, time_step.obs["state"]

        return jax.lax.scan(step, tiny.start(env, jax.random.key(7)), length=8)[1]

    three, five = starts(3), starts(5)
    np.testing.assert_array_equal(three, five[:, :3])
    assert len(np.unique(np.asarray(five) % 1)) > 5  # resets differ, too


def test_without_an_end_nothing_is_reset(counter):
    calls = []
    env = counter()

    def reset(key):
        jax.debug.callback(lambda: calls.append(1))
        return env.reset(key)

    many = vectorize(env._replace(reset=reset), 2)
    state = jax.jit(many.reset)(jax.random.split(jax.random.key(0), 2))
    jax.effects_barrier()
    calls.clear()
    jax.block_until_ready(jax.jit(many.step)(state, jnp.ones((2, 1))))
    jax.effects_barrier()
    assert not calls


@pytest.mark.parametrize("num_envs", [0, -1])
def test_there_is_at_least_one_environment(counter, num_envs):
    with pytest.raises(ValueError, match=f"num_envs={num_envs}"):
        vectorize(counter(), num_envs)

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.envs.wrappers import (
    action_notes,
    chunk_actions,
    normalize,
    stack_observations,
    time_limit,
)
from dppo_jax.normalize import Normalizer

KEY = jax.random.key(0)


def column(*values):
    return jnp.array(values)[:, None]


def test_a_chunk_sums_its_rewards(counter):
    env = chunk_actions(counter(), 3, trace=("total",))
    assert env.action_shape == (3, 1)
    state, step = jax.jit(env.step)(env.reset(KEY), column(1.0, 2.0, 4.0))
    assert step.reward == 7.0 and step.terminated == 0.0
    np.testing.assert_array_equal(step.trace["total"], [1.0, 3.0, 7.0])
    assert step.metrics["total"] == 7.0
    np.testing.assert_array_equal(state.obs["state"], [7.0])


def test_nothing_happens_after_an_end_inside_a_chunk(counter):
    env = chunk_actions(counter(end=3.0), 4, trace=("total",))
    state, step = env.step(env.reset(KEY), column(1.0, 2.0, 4.0, 8.0))
    assert step.reward == 3.0 and step.terminated == 1.0
    np.testing.assert_array_equal(step.obs["state"], [3.0])
    np.testing.assert_array_equal(state.obs["state"], [3.0])
    np.testing.assert_array_equal(step.trace["total"], [1.0, 3.0, 3.0, 3.0])


def test_untraced_metrics_are_those_of_the_last_live_step(counter):
    env = chunk_actions(counter(end=3.0), 4)
    _, step = env.step(env.reset(KEY), column(1.0, 2.0, 4.0, 8.0))
    assert step.metrics["total"] == 3.0


def test_a_chunk_of_one_is_a_step(counter):
    plain, chunked = counter(), chunk_actions(counter(), 1)
    _, expected = plain.step(plain.reset(KEY), jnp.array([5.0]))
    _, step = chunked.step(chunked.reset(KEY), column(5.0))
    jax.tree.map(np.testing.assert_array_equal, step, expected)


def test_chunks_round_the_time_limit_up(counter):
    assert counter().max_steps is None
    assert chunk_actions(counter(), 4).max_steps is None
    env = chunk_actions(time_limit(counter(), 10), 4)
    assert env.max_steps == 3
    state = env.reset(KEY)
    outcomes = []
    for _ in range(3):
        state, step = env.step(state, jnp.ones((4, 1)))
        outcomes.append((float(step.reward), float(step.truncated)))
    assert outcomes == [(4.0, 0.0), (4.0, 0.0), (2.0, 1.0)]


def test_termination_at_the_time_limit_is_no_truncation(counter):
    for end, expected in ((2.0, (1.0, 0.0)), (9.0, (0.0, 1.0))):
        env = time_limit(counter(end=end), 2)
        state, _ = env.step(env.reset(KEY), jnp.ones(1))
        _, step = env.step(state, jnp.ones(1))
        assert (float(step.terminated), float(step.truncated)) == expected


@pytest.mark.parametrize("own, expected", [(0.0, (1.0, 0.0)), (1.0, (0.0, 1.0))])
def test_a_limit_of_the_task_terminates_what_nothing_else_truncates(
    counter, own, expected
):
    task = counter(end=9.0)

    def step(state, action):
        state, outcome = task.step(state, action)
        return state, outcome._replace(truncated=jnp.float32(own))

    env = time_limit(task._replace(step=step), 2, terminates=True)
    state, first = env.step(env.reset(KEY), jnp.ones(1))
    assert (float(first.terminated), float(first.truncated)) == (0.0, own)
    _, last = env.step(state, jnp.ones(1))
    assert (float(last.terminated), float(last.truncated)) == expected


def test_history_repeats_the_first_observation_and_ends_with_the_latest(counter):
    env = stack_observations(counter(), 3)
    assert env.obs_shape == {"state": (3, 1)}
    state = env.reset(KEY)
    np.testing.assert_array_equal(state.obs["state"], column(0.0, 0.0, 0.0))
    for value in (1.0, 1.0):
        state, step = env.step(state, jnp.array([value]))
    np.testing.assert_array_equal(step.obs["state"], column(0.0, 1.0, 2.0))
    np.testing.assert_array_equal(state.obs["state"], step.obs["state"])


def test_history_runs_at_the_control_rate_inside_a_chunk(counter):
    env = chunk_actions(stack_observations(counter(), 2), 3)
    _, step = env.step(env.reset(KEY), column(1.0, 1.0, 1.0))
    np.testing.assert_array_equal(step.obs["state"], column(2.0, 3.0))


def test_normalized_actions_and_observations_span_the_bounds(counter):
    bounds = [jnp.array([v]) for v in (0.0, 10.0, -2.0, 6.0)]
    env = normalize(counter(), Normalizer(*bounds))
    state = env.reset(KEY)
    np.testing.assert_allclose(state.obs["state"], [-1.0])
    state, step = env.step(state, jnp.array([0.5]))  # 4 out of [-2, 6]
    np.testing.assert_allclose(step.reward, 4.0, rtol=1e-6)
    np.testing.assert_allclose(step.obs["state"], [-0.2], atol=1e-6)
    np.testing.assert_array_equal(state.obs["state"], step.obs["state"])


def test_a_normalizer_of_another_task_is_refused(counter):
    one, two = jnp.zeros(1), jnp.zeros(2)
    with pytest.raises(ValueError, match="observation size 2"):
        normalize(counter(), Normalizer(two, two, one, one))
    with pytest.raises(ValueError, match="action size 2"):
        normalize(counter(), Normalizer(one, one, two, two))


@pytest.mark.parametrize(
    "low, high, message",
    [
        (-2.0, 2.0, "entry 1 .* from -10 to 10, but mine takes -2 to 2 .1 of 2 ent"),
        (np.array([-1.0, -10.0]), np.array([1.0, 10.0]), None),
        (-np.inf, np.inf, None),
        (-9.5, 9.5, None),  # A demonstrator that overshoots.
    ],
)
def test_actions_of_the_data_that_an_environment_does_not_take_are_noted(
    low, high, message
):
    obs, action = np.ones(1), np.array([1.0, 10.0])
    notes = action_notes("mine", Normalizer(-obs, obs, -action, action), (low, high))
    assert len(notes) == (message is not None)
    assert message is None or re.search(message, notes[0])
    assert action_notes("mine", Normalizer(-obs, obs, -action, action), None) == ()


def test_wrong_settings_are_named(counter):
    for wrap in (time_limit, stack_observations, chunk_actions):
        with pytest.raises(ValueError, match="=0"):
            wrap(counter(), 0)
    with pytest.raises(ValueError, match=r"\['speed'\].*\['total'\]"):
        chunk_actions(counter(), 2, trace=("speed",))

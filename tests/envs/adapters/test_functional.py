from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.envs.adapters.functional import from_functional
from dppo_jax.envs.core import vectorize
from dppo_jax.envs.wrappers import chunk_actions

KEY = jax.random.key(0)


class State(NamedTuple):
    obs: Any
    reward: Any
    done: Any
    metrics: Any


class Careless:
    """Like the libraries, it changes metrics in place and does not keep their types."""

    action_size = 1

    def reset(self, key):
        zero = jnp.array(0)
        return State(jnp.zeros(1), zero, zero, {"count": zero, "shape": jnp.zeros(3)})

    def step(self, state, action):
        count = state.metrics["count"] + 1.5
        state.metrics.update(count=count)
        done = (count >= 4.5).astype(jnp.float32)
        return State(state.obs + action, 1.0, done, state.metrics)


def test_a_step_does_not_change_its_input_state():
    env = from_functional(Careless(), task="careless")
    state = env.reset(KEY)
    _, step = env.step(state, jnp.ones(1))
    assert state.inner.metrics["count"] == 0 and step.metrics["count"] == 1.5


def test_types_stay_the_same_for_scan_and_jit():
    env = vectorize(chunk_actions(from_functional(Careless(), task="x"), 2), 2)
    step, state = jax.jit(env.step), env.reset(jax.random.split(KEY))
    counts = []
    for _ in range(3):
        state, outcome = step(state, jnp.ones((2, 2, 1)))
        counts.append(float(outcome.metrics["count"][0]))
    # An end cuts the second chunk, and counting stops there.
    assert step._cache_size() == 1 and counts == [3.0, 4.5, 3.0]
    np.testing.assert_array_equal(outcome.reward, [2.0, 2.0])


def test_only_numbers_become_metrics():
    env = from_functional(Careless(), task="careless")
    assert set(env.step(env.reset(KEY), jnp.ones(1))[1].metrics) == {"count"}

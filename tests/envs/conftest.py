"""A countable environment: the state is the sum of the actions and is observed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from dppo_jax.types import Array, Env, Obs, TimeStep


class CounterState(NamedTuple):
    total: Array
    start: Array
    obs: Obs


def make_counter(end: float = 1e9, random_start: bool = False) -> Env:
    """obs = total, reward = action, terminated once total >= end."""

    def reset(key):
        start = jax.random.uniform(key) if random_start else jnp.float32(0)
        return CounterState(start, start, {"state": start[None]})

    def step(state, action):
        total = state.total + action[0]
        obs = {"state": total[None]}
        return CounterState(total, state.start, obs), TimeStep(
            obs=obs,
            reward=action[0],
            terminated=(total >= end).astype(jnp.float32),
            truncated=jnp.float32(0),
            metrics={"total": total},
            trace={},
        )

    return Env(reset, step, {"state": (1,)}, (1,), None)


@pytest.fixture
def counter():
    """Makes the countable environment."""
    return make_counter

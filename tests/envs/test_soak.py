"""A million control steps of random actions leave every number finite.

`SOAK` is the number of control steps per task on C MuJoCo; MJX makes a thousandth.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.envs import make_task
from dppo_jax.envs.quarantine import LARGEST
from dppo_jax.envs.tasks import can, lift, square, transport

STEPS = int(os.environ.get("SOAK", "1_000_000"))
MAX_STEPS = {
    "lift": lift.MAX_STEPS,
    "can": can.MAX_STEPS,
    "square": square.MAX_STEPS,
    "transport": transport.MAX_STEPS,
}
# Episodes that run at once. All steps of a round are one compiled program.
BATCH = {"mujoco": 100, "mjx": 4}


def make_round(name, engine, num_steps):
    """Make key -> the largest number of every episode of a round [B].

    An action stays for some control steps, so that hands travel and meet things.
    """
    env = make_task(name, engine=engine)
    batch = BATCH[engine]

    def largest(state, outcome):
        physics = state.physics
        leaves = (outcome.obs["state"], outcome.reward, physics.qpos, physics.qvel)
        return jnp.stack(
            [jnp.abs(x).reshape(batch, -1).max(axis=1) for x in leaves]
        ).max(axis=0)

    def step(carry, key):
        state, action = carry
        draw, change = jax.random.split(key)
        fresh = jax.random.uniform(draw, action.shape, minval=-1.0, maxval=1.0)
        changes = jax.random.uniform(change, (batch, 1)) < 0.2
        action = jnp.where(changes, fresh, action)
        state, outcome = jax.vmap(env.step)(state, action)
        return (state, action), largest(state, outcome)

    @jax.jit
    def play(key):
        reset_key, step_key = jax.random.split(key)
        state = jax.vmap(env.reset)(jax.random.split(reset_key, batch))
        start = (state, jnp.zeros((batch, *env.action_shape)))
        found = jax.lax.scan(step, start, jax.random.split(step_key, num_steps))[1]
        # A maximum would ignore NaN on some devices.
        return jnp.where(jnp.isfinite(found).all(axis=0), found.max(axis=0), jnp.inf)

    return play


def check(name, engine, steps):
    num_steps = min(MAX_STEPS[name], max(steps // BATCH[engine], 1))
    play = make_round(name, engine, num_steps)
    rounds = -(-steps // (num_steps * BATCH[engine]))
    for index in range(rounds):
        largest = np.asarray(play(jax.random.key(index)))
        assert (largest <= LARGEST).all(), (
            f"{name} on {engine}, round {index}: episodes "
            f"{np.flatnonzero(~(largest <= LARGEST)).tolist()} reached {largest.max()}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MAX_STEPS))
def test_random_actions_break_nothing_on_c_mujoco(name):
    check(name, "mujoco", STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MAX_STEPS))
def test_random_actions_break_nothing_on_mjx(name):
    check(name, "mjx", STEPS // 1000)

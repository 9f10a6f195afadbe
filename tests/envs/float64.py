"""Measures how far MJX departs from Gymnasium in float64: python -m tests.envs.float64

Prints one line per task: its name and the largest error of an observation.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.envs.physics import compile_model, make_physics
from dppo_jax.envs.tasks.locomotion import RUNNERS, mjcf
from tests.envs import test_locomotion


def as_float64(tree):
    """Convert every float of a tree; the engine keeps the types of its input."""

    def cast(x):
        return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)


def largest_error(task, *, num_states=50, num_steps=10):
    """The largest error of observations over `num_steps` steps from random states."""
    played = test_locomotion.play(
        task, num_states=num_states, num_steps=num_steps, x_range=0.0
    )
    model = compile_model(mjcf(task))
    physics = make_physics(model, RUNNERS[task].num_substeps, "mjx")
    qpos, qvel, warmstart = (jnp.asarray(x, jnp.float64) for x in played[1:4])
    state = as_float64(jax.vmap(physics.reset)(qpos, qvel))
    state = state._replace(raw=dict(state.raw) | {"qacc_warmstart": warmstart})
    step = jax.jit(jax.vmap(lambda *args: as_float64(physics.step(*args))))
    errors = []
    for action, expected in zip(played.actions, played.obs):
        state = step(state, jnp.asarray(action, jnp.float64))
        limit = RUNNERS[task].max_velocity
        qvel = np.clip(state.qvel, -limit, limit)
        obs = np.concatenate([state.qpos[:, 1:], qvel], axis=1)
        errors.append(np.abs(obs - expected).max())
    return max(errors)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    for name in RUNNERS:
        print(name, largest_error(name))

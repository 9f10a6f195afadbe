"""End episodes whose simulation diverges, before other code reads their numbers."""

from typing import Any

import jax
import jax.numpy as jnp

from dppo_jax.envs.physics.state import PhysicsState, full
from dppo_jax.types import Array, Env, PyTree, TimeStep

# Numbers of a simulation beyond this count as exploded. MuJoCo's own limit is 1e10, but
# the squares of such numbers would drown all others in float32.
LARGEST = 1e8


def quarantine(env: Env) -> Env:
    """End an episode when its simulation diverges, and report that.

    A step *diverges* if an observation, the reward, or a position or velocity of the
    physics is NaN, infinite, or larger than `LARGEST`. Its outcome is a truncation with
    reward 0 and the observation before it, so all returned numbers are finite, and
    `vectorize` starts a new episode. The metric `diverged` is 1 in such a step, else 0;
    algorithms leave these steps out of learning.

    On the engine `mjx-warp` the metrics `contacts_full` and `constraints_full` are the
    space for contacts and constraints of one simulation if it was too small since the
    reset, else 0.

    It must wrap the task before `normalize`, which clips large numbers.
    """

    def step(state: Any, action: Array) -> tuple[Any, TimeStep]:
        before = jax.tree.map(_mended, state.obs)
        state, outcome = env.step(state, action)
        outcome = jax.tree.map(jnp.asarray, outcome)  # A task may return numbers.
        seen = (outcome.obs, outcome.reward, _motion(state))
        diverged = ~jnp.stack([_is_sound(x) for x in jax.tree.leaves(seen)]).all()

        def instead(other: PyTree, value: PyTree) -> PyTree:
            return jax.tree.map(
                lambda x, y: jnp.where(diverged, x, y).astype(y.dtype), other, value
            )

        metrics, trace = (
            instead(jax.tree.map(_mended, values), values)
            for values in (outcome.metrics, outcome.trace)
        )
        return state, TimeStep(
            obs=instead(before, outcome.obs),
            reward=instead(0.0, outcome.reward),
            terminated=instead(0.0, outcome.terminated),
            truncated=instead(1.0, outcome.truncated),
            metrics={
                **metrics,
                "diverged": diverged.astype(jnp.float32),
                **_full(state),
            },
            trace=trace,
        )

    return env._replace(step=step, quarantined=True)


def _motion(state: Any) -> list[Array]:
    """Positions and velocities in a state; an observation may hide that they exploded.

    A task may clip them, or leave some of them out.
    """
    return [x for state in _physics(state) for x in (state.qpos, state.qvel)]


def _full(state: Any) -> dict[str, Array]:
    """The greatest space that was too small in any simulation of a state."""
    found: dict[str, Array] = {}
    for physics in _physics(state):
        for what, space in full(physics).items():
            name = f"{what}_full"
            found[name] = jnp.maximum(found.get(name, 0.0), space)
    return found


def _physics(state: Any) -> list[PhysicsState]:
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, PhysicsState))
    return [x for x in leaves if isinstance(x, PhysicsState)]


def _is_sound(x: Array) -> Array:
    return (jnp.abs(x) <= LARGEST).all() if _has_fractions(x) else jnp.bool_(True)


def _mended(x: Array) -> Array:
    return jnp.where(jnp.abs(x) <= LARGEST, x, 0) if _has_fractions(x) else x


def _has_fractions(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)

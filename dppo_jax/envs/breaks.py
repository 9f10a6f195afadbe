"""Keep the state before a step in which a simulation diverged, to repeat the step.

A roll-out carries one `Break`, the first that it finds. The compiled program calls no
host function for this; each chunk costs one test of `diverged` and the copy of the
state of one environment, and the states of all environments stay in memory until the
chunk has ended. The host loop writes the break (`training.break_files`).
"""

from typing import Any

import jax
import jax.numpy as jnp

from dppo_jax.training import parallel
from dppo_jax.types import Array, Break, PyTree


def no_break(env_state: Any, action_shape: tuple[int, ...]) -> Break:
    """Make the `Break` with which a roll-out starts; its `found` is False.

    Args:
        env_state: of a VecEnv.
        action_shape: of one environment, (Ta, Da).
    """
    return Break(
        found=jnp.bool_(False),
        env=jnp.int32(0),
        chunk=jnp.int32(0),
        state=jax.tree.map(jnp.zeros_like, _row(env_state, jnp.int32(0))),
        action=jnp.zeros(action_shape),
    )


def notice(
    broken: Break, env_state: Any, action: Array, diverged: Array, chunk: Array
) -> Break:
    """Keep a step if it is the first in which a simulation diverged.

    Args:
        broken: the break so far.
        env_state: before the step.
        action: [B, Ta, Da] of the step.
        diverged: [B] 1 where a simulation diverged.
        chunk: index of the step.
    """
    i = jnp.argmax(diverged > 0)
    first = (diverged > 0).any() & ~broken.found
    offset = parallel.local_part(jnp.arange(diverged.shape[0] * parallel.num_shards()))
    now = Break(
        found=jnp.bool_(True),
        env=offset[i],
        chunk=chunk,
        state=_row(env_state, i),
        action=action[i],
    )
    return jax.tree.map(
        lambda new, old: jnp.where(first, new, old).astype(old.dtype), now, broken
    )


def _row(tree: PyTree, i: Array) -> PyTree:
    """One environment of a state, with keys as integers."""

    def row(x: Array) -> Array:
        is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return (jax.random.key_data(x) if is_key else x)[i]

    return jax.tree.map(row, tree)

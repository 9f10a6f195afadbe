"""Leave steps in which a simulation diverged out of learning.

`envs.quarantine` reports them. Shapes are fixed inside a compiled program, so such a
step is not removed but replaced by a copy of the row before it, in the order of [T, B]
that of a neighbouring environment. If no simulation diverged, this costs nothing,
unless several seeds train in one `vmap`: then XLA computes both cases and selects one.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dppo_jax.replay import Replay
from dppo_jax.types import Array, PyTree


def without_diverged(rows: PyTree, diverged: Array | None) -> PyTree:
    """Replace rows that diverged by others; if all diverged, all stay as they are.

    Args:
        rows: leaves [N, ...].
        diverged: [N] 1 where a simulation diverged; None: nowhere.
    """
    if diverged is None:
        return rows

    def replaced(rows: PyTree) -> PyTree:
        sound = diverged == 0
        row = jnp.where(sound, jnp.arange(len(sound)), -1)
        latest = jax.lax.cummax(row)
        latest = jnp.where(latest < 0, jnp.argmax(sound), latest)
        latest = jnp.where(sound.any(), latest, jnp.arange(len(sound)))
        return jax.tree.map(lambda x: x[latest], rows)

    return jax.lax.cond((diverged > 0).any(), replaced, lambda rows: rows, rows)


def sound_transitions(rows: Any, diverged: Array | None) -> Any:
    """As `without_diverged`, for transitions that follow one another in a buffer.

    The copy and the step before it are marked as truncated, so that no sum of rewards
    crosses the copy. The step before the first one is already in the buffer; see
    `cut_newest`.

    Args:
        rows: leaves [T, B, ...]; `Transition`, or another NamedTuple that has its
            fields `terminated` and `truncated`.
        diverged: [T, B] 1 where a simulation diverged; None: nowhere.
    """
    if diverged is None:
        return rows
    shape = diverged.shape
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    flat = without_diverged(flat, diverged.reshape(-1))
    sound = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), flat)
    before = jnp.concatenate([diverged[1:], jnp.zeros_like(diverged[:1])])
    cut = jnp.maximum(diverged, before * (1 - rows.terminated)) > 0
    return sound._replace(truncated=jnp.where(cut, 1.0, sound.truncated))


def cut_newest(replay: Replay, diverged: Array | None) -> Replay:
    """Mark the newest stored step as truncated where the step after it diverged.

    Call it before inserting the result of `sound_transitions`.

    Args:
        replay: of items as in `sound_transitions`; an empty one may be changed in a
            slot that holds nothing.
        diverged: [T, B] as in `sound_transitions`; only the first of T steps is read.
    """
    if diverged is None:
        return replay
    items = replay.items
    newest = (replay.head - 1) % items.truncated.shape[1]
    before = items.truncated[:, newest]
    cut = (diverged[0] > 0) & (items.terminated[:, newest] == 0)
    truncated = items.truncated.at[:, newest].set(jnp.where(cut, 1.0, before))
    return replay._replace(items=items._replace(truncated=truncated))

"""Leaves the steps out of what is learned in which a simulation diverged.

`envs.quarantine` reports them. Shapes are fixed inside a compiled program, so such a
step is not removed: a copy of the step before it, which is that of a neighbouring
environment, stands in its place. Where nothing diverged, nothing is computed, unless
several seeds train at once: then XLA computes both cases and selects one.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dppo_jax.replay import Replay
from dppo_jax.types import Array, PyTree


def without_diverged(rows: PyTree, diverged: Array | None) -> PyTree:
    """Replace rows by sound ones; if there are none, all stay as they are.

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

    The copy ends an episode of its own, and the step before it ends its episode, as by
    a time limit, so that no sum of rewards goes across. For the step before the first
    one, which is stored already, see `cut_newest`.

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
    """End the episode of the newest stored step where the step after it diverged.

    Call it before what `sound_transitions` returns is inserted.

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

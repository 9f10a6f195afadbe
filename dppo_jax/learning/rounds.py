"""The updates of an off-policy iteration, in rounds on batches of a replay buffer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dppo_jax import replay as buffers
from dppo_jax.learning.learner import Learner
from dppo_jax.replay import Replay
from dppo_jax.types import Array, Metrics, PyTree, Transition


def make_rounds(
    learner: Learner,
    *,
    num_rounds: int,
    updates_per_round: int,
    batch_size: int,
    num_groups: int,
    offline_share: float,
) -> Callable[[Any, Replay, Replay | None, Array], tuple[tuple[Any, PyTree], Metrics]]:
    """Make all updates of an iteration, each on a new batch.

    Args:
        num_rounds: calls of `Learner.update`.
        updates_per_round: batches that one call gets.
        batch_size: transitions of one batch.
        num_groups, offline_share: see `off_policy`.

    Returns:
        (learner's state, replay, offline, key) -> ((learner's state, extras), metrics).
        `extras` replace those of the buffer's items; metrics are means over the rounds
        whose losses are finite, and `skipped_updates` counts the updates of the others.
    """

    def draw(
        replay: Replay, offline: Replay | None, key: Array
    ) -> tuple[buffers.Places | None, Transition]:
        """Draw the batches of a round, leaves [updates_per_round, N, ...]."""
        num_rows = updates_per_round * batch_size
        places = None
        if offline is None:
            places, rows = buffers.sample_places(
                replay, key, num_rows, num_groups=num_groups
            )
        else:
            rows = buffers.sample_mixed(
                replay,
                offline,
                key,
                num_rows,
                offline_share=offline_share,
                num_groups=num_groups,
            )
        # Neighbouring rows come from the same group and buffer. Put them into different
        # batches, so that each batch has its share of every group and buffer.
        return places, jax.tree.map(
            lambda x: x.reshape(-1, updates_per_round, *x.shape[1:]).swapaxes(0, 1),
            rows,
        )

    def learn(
        learner_state: Any, replay: Replay, offline: Replay | None, key: Array
    ) -> tuple[tuple[Any, PyTree], Metrics]:
        def one_round(carry: Any, key: Array) -> tuple[Any, Metrics]:
            learner_state, extras = carry
            draw_key, update_key = jax.random.split(key)
            places, batches = draw(with_extras(replay, extras), offline, draw_key)
            if learner.keep is None or places is None:
                learner_state, metrics = learner.update(
                    learner_state, batches, update_key
                )
                return (learner_state, extras), metrics
            learner_state, metrics, kept = learner.update(
                learner_state, batches, update_key
            )
            rows = jax.tree.map(
                lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), kept
            )
            return (learner_state, buffers.write(extras, places, rows)), metrics

        carry, metrics = jax.lax.scan(
            one_round,
            (learner_state, replay.items.extras),
            jax.random.split(key, num_rounds),
        )
        # If a loss is not finite, neither are its gradients: they were skipped.
        made = jnp.ones(num_rounds, bool)
        for name in sorted(set(learner.finite) & set(metrics)):
            made &= jnp.isfinite(metrics[name])
        counts = {
            "num_updates": jnp.int32(num_rounds * updates_per_round),
            "skipped_updates": (num_rounds - made.sum()) * updates_per_round,
        }
        return carry, _means(metrics, made) | counts

    return learn


def with_extras(replay: Replay, extras: PyTree) -> Replay:
    """Replace what is stored beside the transitions; leaves as in `items.extras`."""
    return replay._replace(items=replay.items._replace(extras=extras))


def _means(metrics: Metrics, made: Array) -> Metrics:
    """Means over the rounds, leaves [R], that were not skipped; 0 if all were."""
    num_made = jnp.maximum(made.sum(), 1)
    return {
        name: jnp.where(made.all(), x.mean(0), jnp.where(made, x, 0).sum(0) / num_made)
        for name, x in metrics.items()
    }

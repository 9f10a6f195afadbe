"""The updates of DAWR, with plain arguments: V from the whole buffer, then the policy.

`regression` has the equations.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dppo_jax import replay as buffers
from dppo_jax.learning import losses
from dppo_jax.learning.optimizers import (
    Trained,
    Trainer,
    are_finite,
    mean_of_made,
)
from dppo_jax.learning.quarantine import cut_newest
from dppo_jax.learning.regression import (
    lambda_targets,
    regression_weight,
    value_regression_loss,
    weighted_clone_loss,
)
from dppo_jax.learning.regression_iteration import Learner, RegressionState, Rows
from dppo_jax.policies import ChainPolicy
from dppo_jax.replay import Replay
from dppo_jax.types import Array, Metrics, Obs, PyTree

# Names of departures of the reference, see `algorithms/dawr.py`.
QUIRKS = ("fixed_targets", "broadcast_targets")
# Added to the standard deviation of the advantages of a minibatch.
_EPSILON = 1e-6


class Memory(NamedTuple):
    """What is kept from one iteration to the next: the latest rows, and V."""

    replay: Replay
    critic: Trained


class Samples(NamedTuple):
    """A drawn minibatch, leaves [B, ...]."""

    obs: Obs
    chunk: Array
    target: Array
    advantage: Array


def buffer_targets(
    critic: Any,
    critic_params: PyTree,
    replay: Replay,
    *,
    discount: float,
    td_lambda: float,
    reward_scale: float = 1.0,
    error_scale: float = 1.0,
) -> tuple[Array, Array]:
    """Targets of V for every slot of a buffer, and the values V(s) of the slots.

    Args:
        critic: a module, `apply(params, obs) -> [B]`.
        replay: of `Rows`, whose rings hold equally many.
        discount, td_lambda, error_scale: as in `regression.lambda_targets`.
        reward_scale: a factor of rewards.

    Returns:
        Both [B, L], in the order of the slots; those of empty slots are arbitrary.
    """
    rows = replay.items

    def ring_by_ring(obs: Obs) -> Array:
        # The activations of a whole buffer would fill the memory of a device.
        return jax.lax.map(lambda ring: critic.apply(critic_params, ring), obs)

    value, next_value = ring_by_ring(rows.obs), ring_by_ring(rows.next_obs)

    def in_time(x: Array) -> Array:
        # The slot at the head is empty or holds the oldest row, so empty slots come
        # first, and nothing reaches back from them.
        return jnp.roll(x, -replay.head, axis=1).T

    target = lambda_targets(
        in_time(reward_scale * rows.reward),
        in_time(value),
        in_time(next_value),
        in_time(rows.terminated),
        in_time(rows.truncated),
        discount=discount,
        td_lambda=td_lambda,
        error_scale=error_scale,
    )
    return jnp.roll(target.T, replay.head, axis=1), value


def advantage_regression(
    policy: ChainPolicy,
    critic: Any,
    actor_trainer: Trainer,
    critic_trainer: Trainer,
    *,
    num_envs: int,
    capacity: int,
    batch_size: int,
    actor_updates: int,
    critic_updates: int,
    critic_warmup: int,
    discount: float,
    td_lambda: float,
    reward_scale: float,
    beta: float,
    max_weight: float,
    reset_at_iteration: bool,
    quirks: tuple[str, ...] = (),
) -> Learner:
    """Make the learner of DAWR.

    Args:
        critic: a module, `apply(params, obs) -> [B]`.
        capacity: rows of all environments together; new ones overwrite the oldest.
        batch_size: rows of a minibatch, drawn with replacement from the whole buffer.
        actor_updates, critic_updates: numbers of updates in an iteration.
        critic_warmup: iterations in which the policy stays as it is.
        discount, td_lambda, reward_scale: as in `buffer_targets`.
        beta, max_weight: as in `regression_weight`.
        reset_at_iteration: whether every iteration starts new episodes, so that targets
            end at the last chunk of a roll-out.
        quirks: names in `QUIRKS`.
    """
    estimate = dict(discount=discount, td_lambda=td_lambda, error_scale=1.0)
    if "fixed_targets" in quirks:
        estimate = dict(discount=0.99, td_lambda=0.95, error_scale=0.95)
    broadcast = "broadcast_targets" in quirks

    def init(key: Array, obs: Obs, row: Rows) -> Memory:
        replay = buffers.init(row, num_envs, capacity)
        return Memory(replay, critic_trainer.init(critic.init(key, obs)))

    def store(
        memory: Memory, rows: Rows, diverged: Array | None
    ) -> tuple[Memory, tuple]:
        if reset_at_iteration:
            cut = rows.truncated.at[-1].set(1 - rows.terminated[-1])
            rows = rows._replace(truncated=cut)
        replay = cut_newest(memory.replay, diverged)
        return memory._replace(replay=buffers.insert(replay, rows)), ()

    def with_targets(memory: Memory) -> tuple[Replay, Metrics]:
        """The buffer as one of `Samples`."""
        replay = memory.replay
        target, value = buffer_targets(
            critic,
            memory.critic.params,
            replay,
            reward_scale=reward_scale,
            **estimate,
        )
        rows = replay.items
        samples = Samples(rows.obs, rows.chunk, target, target - value)
        filled = 1.0 * (
            (replay.head - 1 - jnp.arange(target.shape[1])) % target.shape[1]
            < replay.size[:, None]
        )
        metrics = {
            "target": losses.weighted_mean(target, filled),
            "advantage_magnitude": losses.weighted_mean(abs(target - value), filled),
        }
        return replay._replace(items=samples), metrics

    def value_step(trained: Trained, batch: Samples) -> tuple[Trained, Any]:
        def loss_of(params: PyTree) -> Array:
            value = critic.apply(params, batch.obs)
            return value_regression_loss(value, batch.target, broadcast=broadcast)

        loss, grads = jax.value_and_grad(loss_of)(trained.params)
        return critic_trainer.descend(trained, grads), (loss, are_finite(grads))

    def policy_step(
        trained: Trained, batch: Samples, key: Array
    ) -> tuple[Trained, Any]:
        standard = losses.normalize_advantage(batch.advantage, epsilon=_EPSILON)
        weight = regression_weight(standard, beta=beta, max_weight=max_weight)
        loss, grads = jax.value_and_grad(weighted_clone_loss, argnums=1)(
            policy.clone_loss,
            trained.params,
            jax.random.split(key, batch_size),
            batch.obs,
            batch.chunk,
            weight,
        )
        means = (loss, weight.mean())
        return actor_trainer.descend(trained, grads), (means, are_finite(grads))

    def update_policy(actor: Trained, samples: Replay, key: Array) -> tuple[Any, Any]:
        def one(trained: Trained, key: Array) -> tuple[Trained, Any]:
            draw_key, noise_key = jax.random.split(key)
            batch = buffers.sample(samples, draw_key, batch_size)
            return policy_step(trained, batch, noise_key)

        return jax.lax.scan(one, actor, jax.random.split(key, actor_updates))

    def update(
        state: RegressionState, data: Any, key: Array
    ) -> tuple[RegressionState, Metrics]:
        del data
        critic_key, actor_key = jax.random.split(key)
        samples, _ = with_targets(state.memory)
        trained, (value_losses, critic_made) = jax.lax.scan(
            lambda trained, key: value_step(
                trained, buffers.sample(samples, key, batch_size)
            ),
            state.memory.critic,
            jax.random.split(critic_key, critic_updates),
        )
        memory = state.memory._replace(critic=trained)
        samples, metrics = with_targets(memory)
        idle, none = jnp.zeros(actor_updates), jnp.ones(actor_updates, bool)
        warm = state.iteration >= critic_warmup
        actor, ((policy_losses, weights), actor_made) = jax.lax.cond(
            warm,
            lambda: update_policy(state.actor, samples, actor_key),
            lambda: (state.actor, ((idle, idle), none)),
        )
        skipped = (~critic_made).sum() + (~actor_made).sum()
        return state._replace(actor=actor, memory=memory), metrics | {
            "policy_loss": mean_of_made(policy_losses, actor_made),
            "value_loss": mean_of_made(value_losses, critic_made),
            "weight": mean_of_made(weights, actor_made),
            "num_updates": critic_updates + actor_updates * warm,
            "skipped_updates": skipped,
            "replay_size": memory.replay.size.sum(),
        }

    return Learner(init=init, store=store, update=update, finite=("value_loss",))

"""Clipped policy updates from groups of chunks that critics score, as in OGPO.

OGPO (Patil et al. 2026, arXiv 2605.03065) leaves the environment out of PPO: for every
observation of a replay batch the target actor samples G chains, critics score their
chunks, and the advantage of a chunk is relative to the others of its group.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dppo_jax.learning import optimizers
from dppo_jax.learning.chain_losses import chain_surrogate_loss, mean_log_prob
from dppo_jax.learning.diffusion_q import DiffusionQState, Update, whole
from dppo_jax.learning.learner import row_keys
from dppo_jax.learning.optimizers import Trainer
from dppo_jax.networks import StateActionCritic
from dppo_jax.policies.chain import ChainPolicy
from dppo_jax.training import parallel
from dppo_jax.types import Array, Metrics, Obs, PyTree, Transition


def group_advantage(value: Array) -> Array:
    """Mean value of a chunk minus that of its group, without a scale.

    A_g = mean_m Q_m(s, a_g) - mean_h mean_m Q_m(s, a_h)

    Args:
        value: [M, N, G] of M critics, for G chunks of each of N observations.

    Returns:
        [N, G]; each group has the sum zero.
    """
    chex.assert_rank(value, 3)
    value = value.mean(0)
    return value - value.mean(-1, keepdims=True)


def consensus_advantage(value: Array) -> Array:
    """The advantage nearest to zero of all critics, or zero if their signs differ.

    The "conservative advantage" of OGPO: with A_m = Q_m(s, a_g) - mean_h Q_m(s, a_h) of
    each critic, min_m A_m if all are positive, max_m A_m if all are negative, else 0.

    Args:
        value: [M, N, G], see `group_advantage`.

    Returns:
        [N, G]; nowhere larger in size than `group_advantage`, with one critic the same.
    """
    chex.assert_rank(value, 3)
    advantage = value - value.mean(-1, keepdims=True)
    least, most = advantage.min(0), advantage.max(0)
    return jnp.maximum(least, 0) + jnp.minimum(most, 0)


ADVANTAGES: dict[str, Callable[[Array], Array]] = {
    "mean": group_advantage,
    "consensus": consensus_advantage,
}


def spreads_evenly(num_states: int, batch_size: int, num_groups: int) -> bool:
    """Whether equally many of the observations come from each group of the replay."""
    every = batch_size // max(num_states, 1)
    return (
        every * num_states == batch_size > 0
        and batch_size // max(num_groups, 1) % every == 0
    )


def surrogate_update(
    policy: ChainPolicy,
    critic: StateActionCritic,
    trainer: Trainer,
    *,
    group_size: int,
    num_states: int,
    clip: float,
    advantage: str,
    target_rate: float,
    clone_coef: float = 0.0,
    clone_return: float | None = None,
) -> Update:
    """Make the update of the actor, and then of its target network.

    The loss is the clipped objective with one ratio for each chain, between the actor
    and its target network, which has sampled the chain (`chain_surrogate_loss`). The
    target critics score the chunk; no gradient passes through them or the chain.

    Args:
        group_size: G, at least 2.
        num_states: observations of a batch, on all devices, whose groups are sampled; a
            divisor of its rows. They are spread evenly over the batch.
        clip: half-width of the ratio's range.
        advantage: a name in `ADVANTAGES`.
        target_rate: see `optimizers.polyak`.
        clone_coef: weight of the cloning loss of stored chunks.
        clone_return: only chunks with at least this `extras["return_to_go"]` are
            cloned, see `returns_to_go`; None: all.
    """
    value_of: Callable[..., Any] = critic.apply
    advantage_of = ADVANTAGES[advantage]
    num_moves = policy.num_tuned_steps

    def score(log_prob: Array) -> Array:
        return mean_log_prob(log_prob, bounds=None)

    def sample_groups(
        state: DiffusionQState, obs: Obs, key: Array
    ) -> tuple[Obs, Array, Array, Array]:
        """Observations [N G, ...], chains, their scores [N G, K'] and advantages."""
        keys = row_keys(key, len(next(iter(obs.values()))))
        keys = jax.vmap(lambda key: jax.random.split(key, group_size))(keys)
        many = jax.tree.map(lambda x: jnp.repeat(x, group_size, axis=0), obs)
        sampled = policy.sample(whole(state.target_actor), keys.reshape(-1), many)
        value = value_of(state.target, many, sampled.chain[:, -1])
        groups = value.reshape(len(value), -1, group_size)
        advantages = advantage_of(groups).reshape(-1)
        return many, sampled.chain, score(sampled.log_prob), advantages

    def clone_loss(params: PyTree, batch: Transition, key: Array) -> Array:
        keys = row_keys(key, len(batch.reward))
        losses = policy.clone_loss(params, keys, batch.obs, batch.action)
        if clone_return is None:
            return losses.mean()
        weight = 1.0 * (batch.extras["return_to_go"] >= clone_return)
        count = parallel.mean(weight.mean())
        # Devices have different numbers of these chunks.
        return (weight * losses).mean() / jnp.maximum(count, 1e-6)

    def update(
        state: DiffusionQState, batch: Transition, key: Array
    ) -> tuple[DiffusionQState, Metrics]:
        group_key, clone_key = jax.random.split(key)
        rows = len(batch.reward)
        every = rows * parallel.num_shards() // num_states
        obs = jax.tree.map(lambda x: x[::every], batch.obs)
        many, chain, old, advantages = sample_groups(state, obs, group_key)
        step = jnp.broadcast_to(jnp.arange(num_moves), old.shape)

        def loss_of(params: PyTree) -> tuple[Array, Metrics]:
            loss, info = chain_surrogate_loss(
                score(policy.chain_log_prob(params, chain, many)),
                step,
                old,
                advantages,
                num_tuned_steps=num_moves,
                clip=clip,
            )
            metrics = dict(
                ratio=info.ratio,
                approx_kl=info.approx_kl,
                clip_fraction=info.clip_fraction,
                advantage_size=jnp.abs(advantages).mean(),
            )
            if clone_coef:
                cloned = clone_loss(params, batch, clone_key)
                loss += clone_coef * cloned
                metrics["clone_loss"] = cloned
            return loss, metrics | {"actor_loss": loss}

        gradient = jax.grad(loss_of, has_aux=True)
        grads, metrics = parallel.mean(gradient(state.actor.params))
        trained = trainer.descend(state.actor, grads)
        moved = optimizers.polyak(state.target_actor, trained.params, target_rate)
        return state._replace(actor=trained, target_actor=moved), metrics

    return update

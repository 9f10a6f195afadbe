"""Gradients of PPO over one minibatch: policy loss, penalties and value loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dppo_jax.diffusion.chain import Moments, gaussian_log_prob
from dppo_jax.learning import chain_losses, on_policy_updates
from dppo_jax.learning.minibatch import mean_over_micro_batches, micro_batch_size
from dppo_jax.policies import ChainPolicy, PolicyParams
from dppo_jax.training import parallel
from dppo_jax.types import Array, Metrics, Obs, PyTree


class Steps(NamedTuple):
    """The data of the updates: N chunks with K' tuned moves each, leaves [N, ...].

    moments: of the moves, under the parameters that sampled them. None: not needed.
    """

    obs: Obs
    chain: Array
    log_prob: Array
    advantage: Array
    target: Array
    value: Array
    moments: Moments | None = None


class Moves(NamedTuple):
    """A minibatch: R chunks and M consecutive moves of each; leaves [R, ...].

    chain: [R, M + 1, Ta, Da], consecutive entries of a chain.
    step, old_log_prob, advantage: [R, M]; advantage [R, 1] if a chain has one ratio.
    old_moments: as in `Steps`.
    """

    obs: Obs
    chain: Array
    step: Array
    old_log_prob: Array
    advantage: Array
    old_moments: Moments | None = None


class Gradients(NamedTuple):
    """The gradients of one minibatch.

    actor: (params, moves, key) -> (mean gradient over the minibatch, metrics).
    critic: (critic parameters, steps [N, ...], row indices [B]) -> (mean gradient over
        these rows, value loss).
    """

    actor: Callable[[PolicyParams, Moves, Array], tuple[PyTree, Metrics]]
    critic: Callable[[PyTree, Steps, Array], tuple[PyTree, Array]]


def minibatch_sizes(
    config: ConfigDict, policy: ChainPolicy, num_devices: int = 1
) -> tuple[int, int, int]:
    """Compute the sizes of minibatches and micro-batches.

    Args:
        num_devices: devices that share a minibatch; each divides its part into
            micro-batches.

    Returns:
        Moves per item (an item is a pair or a chain), items per minibatch, items per
        micro-batch.

    Raises:
        SettingsError: the size of a micro-batch does not divide that of a minibatch.
    """
    moves_each = policy.num_tuned_steps if config.minibatch == "chain" else 1
    num_items = config.batch_size // moves_each
    wanted = config.get("micro_batch_size")
    micro_items = micro_batch_size(num_items // num_devices, wanted, moves=moves_each)
    return moves_each, num_items, micro_items


def log_prob_of_moves(policy: ChainPolicy, params: PyTree, moves: Moves) -> Array:
    """Log-probabilities under `params`, [R, M, Ta, Da], entry by entry.

    M is K' for whole chains, and otherwise 1.
    """
    if moves.step.shape[1] == policy.num_tuned_steps:
        return policy.chain_log_prob(params, moves.chain, moves.obs)
    x, next_x = moves.chain[:, 0], moves.chain[:, 1]
    return policy.log_prob(params, x, next_x, moves.obs, moves.step[:, 0])[:, None]


def make_gradients(
    policy: ChainPolicy,
    critic: Any,
    config: ConfigDict,
    *,
    mean: Callable[[Array], Array],
) -> Gradients:
    """Make the gradients of both losses, averaged over micro-batches and devices.

    Args:
        critic: a module, `apply(params, obs) -> [B]`.
        config: `default_config` with changes, already checked.
        mean: averages the log-probabilities of a move, [..., Ta, Da] -> [...].

    Raises:
        SettingsError: the size of a micro-batch does not divide that of a minibatch.
    """
    _, num_items, _ = minibatch_sizes(config, policy)

    def micro_items() -> int:
        return minibatch_sizes(config, policy, parallel.num_shards())[2]

    def surrogate(
        params: PolicyParams, moves: Moves, log_prob: Array
    ) -> tuple[Array, Metrics]:
        """The clipped objective, given averaged log-probabilities [R, M]."""
        if config.ratio == "chain":
            loss, info = chain_losses.chain_surrogate_loss(
                log_prob,
                moves.step,
                moves.old_log_prob,
                moves.advantage[:, 0],
                num_tuned_steps=policy.num_tuned_steps,
                clip=config.clip_top,
                num_active=params.num_active,
            )
            return loss, {"policy_loss": loss} | info._asdict()
        loss, info = chain_losses.surrogate_loss(
            log_prob,
            moves.step,
            moves.old_log_prob,
            moves.advantage,
            num_tuned_steps=policy.num_tuned_steps,
            clip_top=config.clip_top,
            clip_base=config.clip_base,
            clip_rate=config.clip_rate,
            num_active=params.num_active,
        )
        return loss, {"policy_loss": loss} | info._asdict()

    def policy_loss(
        tuned: PyTree, params: PolicyParams, moves: Moves
    ) -> tuple[Array, Metrics]:
        """The objective, and the KL penalty of all chains or of those it replaces."""
        if moves.old_moments is None or policy.chain_moments is None:
            log_prob = log_prob_of_moves(policy, tuned, moves)
            return surrogate(params, moves, mean(log_prob))
        # One evaluation of the network gives both.
        moments = policy.chain_moments(tuned, moves.chain, moves.obs)
        log_prob = gaussian_log_prob(moves.chain[:, 1:], moments.mean, moments.std)
        weight = chain_losses.move_weight(
            moves.step, policy.num_tuned_steps, params.num_active
        )
        kl = chain_losses.chain_kl(moves.old_moments, moments, weight)
        metrics, limit = {"chain_kl": kl.mean()}, config.chain_kl.get("limit")
        penalised = kl
        if limit is not None:
            gated = 1.0 * (kl >= limit)
            # An advantage of zero leaves the objective without a gradient.
            advantage = moves.advantage * (1 - gated)[:, None]
            moves = moves._replace(advantage=advantage)
            metrics["gated_fraction"] = gated.mean()
            penalised = gated * kl
        loss, info = surrogate(params, moves, mean(log_prob))
        return loss + config.chain_kl.coef * penalised.mean(), info | metrics

    def penalties(
        tuned: PyTree, params: PolicyParams, obs: Obs, keys: Array
    ) -> tuple[Array, Metrics]:
        loss, metrics = jnp.zeros(()), {}
        if config.entropy_coef:
            metrics["entropy"] = policy.entropy(tuned, obs).mean()
            loss -= config.entropy_coef * metrics["entropy"]
        if config.clone_coef:
            metrics["cloning_penalty"] = chain_losses.cloning_penalty(
                tuned,
                policy,
                params.base,
                keys,
                obs,
                num_active=params.num_active,
                mean=mean,
            )
            loss += config.clone_coef * metrics["cloning_penalty"]
        if config.distance_coef:
            metrics["action_distance"] = chain_losses.action_distance(
                tuned, policy, params, keys, obs
            )
            loss += config.distance_coef * metrics["action_distance"]
        return loss, metrics

    def actor_gradient(
        params: PolicyParams, moves: Moves, key: Array
    ) -> tuple[PyTree, Metrics]:
        """Accumulate the mean gradient over a minibatch, micro-batch by micro-batch."""
        advantage, step = moves.advantage, moves.step
        if config.ratio == "chain":
            # One sample per chain: its last move, which is always tuned.
            advantage, step = advantage[:, -1:], step[:, -1:]
        advantage = chain_losses.move_advantage(
            advantage,
            step,
            num_tuned_steps=policy.num_tuned_steps,
            denoising_discount=config.denoising_discount,
            normalize=config.normalize_advantage,
            quantiles=tuple(config.advantage_quantiles),
            num_active=params.num_active,
        )

        weight = chain_losses.move_weight(
            step, policy.num_tuned_steps, params.num_active
        )
        grads, metrics = mean_over_micro_batches(
            lambda batch: jax.grad(policy_loss, has_aux=True)(
                params.tuned, params, batch
            ),
            moves._replace(advantage=advantage),
            micro_items(),
            None if weight is None else weight.sum(1),
        )
        grads, metrics = parallel.mean(
            (grads, metrics), None if weight is None else weight.sum()
        )
        if not (config.entropy_coef or config.clone_coef or config.distance_coef):
            return grads, metrics

        def penalty_gradient(batch: tuple[Obs, Array]) -> tuple[PyTree, Metrics]:
            obs, keys = batch
            return jax.grad(penalties, has_aux=True)(params.tuned, params, obs, keys)

        # The penalties include every row, even if its move is no longer tuned. Each row
        # has its own key, so its draws depend neither on micro-batches nor on devices.
        keys = parallel.local_part(jax.random.split(key, num_items))
        more, reported = mean_over_micro_batches(
            penalty_gradient, (moves.obs, keys), micro_items()
        )
        more, reported = parallel.mean((more, reported))
        return jax.tree.map(jnp.add, grads, more), metrics | reported

    def critic_gradient(
        critic_params: PyTree, steps: Steps, row: Array
    ) -> tuple[PyTree, Array]:
        """Mean gradient over the chunks of a minibatch, and the loss.

        All pairs of a chunk have the same value. If a minibatch has more pairs than
        there are chunks, the critic evaluates each chunk once and weights it.
        """
        return on_policy_updates.value_gradient(
            critic,
            critic_params,
            (steps.obs, steps.target, steps.value),
            row,
            value_coef=config.value_coef,
            value_clip=config.get("value_clip"),
        )

    return Gradients(actor_gradient, critic_gradient)

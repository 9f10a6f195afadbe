"""Calibrated conservative Q-learning (Nakamoto et al. 2023, arXiv 2303.05479).

It is CQL (Kumar et al. 2020, arXiv 2006.04779) with a bound: its penalty does not lower
values of the policy's actions below the return-to-go of the stored chunk.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.learning import optimizers, q_losses
from dppo_jax.learning.learner import row_keys
from dppo_jax.learning.optimizers import Trainer
from dppo_jax.learning.soft_actor_critic import SACState
from dppo_jax.networks import StateActionCritic
from dppo_jax.policies.squashed import SquashedPolicy
from dppo_jax.training import parallel
from dppo_jax.types import Array, Metrics, Obs, PyTree, Transition

# Departures of the reference implementation from the paper.
# mixed_rows: the log-probabilities of all rows of a batch enter the sum of each row.
# random_density: 0.5^d is subtracted for random actions, instead of its logarithm.
# next_obs_scores: actions that are sampled at the next observation are scored there;
#     the paper's code scores them at the observation.
QUIRKS = ("mixed_rows", "random_density", "next_obs_scores")


class Sampled(NamedTuple):
    """Actions whose values the penalty lowers.

    random: [B, M, Ta, Da] uniform in [-1, 1].
    action, log_prob: [B, Ta, Da] and [B], of the policy at the observation.
    next_action, next_log_prob: the same, sampled at the next observation.
    """

    random: Array
    action: Array
    log_prob: Array
    next_action: Array
    next_log_prob: Array


def best_target(value: Array) -> Array:
    """Value of the best of n actions: max_j min_i Q_i(s', a_j), without entropy.

    Args:
        value: [N, B, n] of N critics.

    Returns:
        [B].
    """
    chex.assert_rank(value, 3)
    return value.min(0).max(-1)


def log_mean_exp_entries(
    random_value: Array,
    value: Array,
    next_value: Array,
    sampled: Sampled,
    return_to_go: Array,
    *,
    quirks: tuple[str, ...] = (),
) -> Array:
    """Values of M + 2 actions, each less the log-density with which it was drawn.

    Their log-sum-exp estimates log of the integral of exp Q (CQL, appendix F). Those of
    the policy are at least the return-to-go (Cal-QL, eq. 4.1).

    Args:
        random_value: [N, B, M] of the random actions.
        value, next_value: [N, B] of the policy's actions.
        return_to_go: [B]; -infinity does not bound them.
        quirks: names in `QUIRKS`.

    Returns:
        [N, B, M + 2]; with the quirk `mixed_rows` [N, B, M + 2 B].
    """
    chex.assert_rank([random_value, value, next_value, return_to_go], [3, 2, 2, 1])
    size = np.prod(sampled.random.shape[2:])
    density = 0.5**size if "random_density" in quirks else size * np.log(0.5)
    entries = [random_value - density]
    for of_policy, log_prob in (
        (value, sampled.log_prob),
        (next_value, sampled.next_log_prob),
    ):
        of_policy = jnp.maximum(of_policy, return_to_go)[..., None]
        rows = log_prob if "mixed_rows" in quirks else log_prob[:, None]
        entries.append(of_policy - rows)
    return jnp.concatenate(entries, axis=-1)


def calibrated_loss(
    value_of: Callable[[Obs, Array], Array],
    batch: Transition,
    target: Array,
    sampled: Sampled,
    *,
    weight: float,
    reward_scale: float = 1.0,
    quirks: tuple[str, ...] = (),
) -> tuple[Array, Metrics]:
    """Squared errors plus `weight` times the penalty, both summed over critics.

    penalty = mean over the batch of logsumexp(entries) - Q(s, a) (Cal-QL, eq. 4.1)

    Args:
        value_of: (obs, action [B, Ta, Da]) -> [N, B].
        batch: leaves [B, ...]; its extras hold `return_to_go` [B].
        target: [B] of the squared errors.
        reward_scale: factor of the rewards in `target`, hence of the returns.
        quirks: names in `QUIRKS`.
    """
    num_random = sampled.random.shape[1]
    value = value_of(batch.obs, batch.action)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, num_random, axis=0), batch.obs)
    flat = sampled.random.reshape(-1, *sampled.random.shape[2:])
    random_value = value_of(repeated, flat).reshape(*value.shape, num_random)
    scored_at = batch.next_obs if "next_obs_scores" in quirks else batch.obs
    policy_value = value_of(batch.obs, sampled.action)
    return_to_go = reward_scale * batch.extras["return_to_go"]
    entries = log_mean_exp_entries(
        random_value,
        policy_value,
        value_of(scored_at, sampled.next_action),
        sampled,
        return_to_go,
        quirks=quirks,
    )
    penalty = (jax.nn.logsumexp(entries, axis=-1) - value).mean(1).sum()
    squares = 2 * q_losses.critic_loss(value, target)
    loss = squares + weight * penalty
    return loss, {
        "critic_loss": loss,
        "td_loss": squares,
        "penalty": penalty,
        "value": value.mean(),
        "calibrated": (policy_value < return_to_go).mean(),
        "known_returns": jnp.isfinite(return_to_go).mean(),
    }


def calibrated_critic_update(
    policy: SquashedPolicy,
    critic: StateActionCritic,
    trainer: Trainer,
    *,
    discount: float,
    target_rate: float,
    backup_actions: int,
    random_actions: int,
    weight: float,
    reward_scale: float = 1.0,
    quirks: tuple[str, ...] = (),
) -> Callable[[SACState, Transition, Array], tuple[SACState, Metrics]]:
    """Make the `critic` of `soft_actor_critic.Updates`.

    Args:
        discount: per chunk.
        target_rate: see `optimizers.polyak`.
        backup_actions: actions of the policy at the next observation, whose best enters
            the target.
        random_actions: M.
        weight, reward_scale, quirks: see `calibrated_loss`.
    """
    value_of: Callable[..., Any] = critic.apply

    def td_target(state: SACState, batch: Transition, key: Array) -> Array:
        num_rows = len(batch.reward)
        keys = jax.vmap(lambda key: jax.random.split(key, backup_actions))(
            row_keys(key, num_rows)
        ).reshape(-1)
        obs = jax.tree.map(
            lambda x: jnp.repeat(x, backup_actions, axis=0), batch.next_obs
        )
        action, _ = policy.sample(state.actor.params, keys, obs)
        value = value_of(state.target, obs, action)
        return q_losses.td_target(
            reward_scale * batch.reward,
            best_target(value.reshape(-1, num_rows, backup_actions)),
            batch.terminated,
            discount=discount,
        )

    def draw(params: PyTree, batch: Transition, key: Array) -> Sampled:
        num_rows, shape = len(batch.reward), (random_actions, *batch.action.shape[1:])
        random_keys, *policy_keys = (
            row_keys(key, num_rows) for key in jax.random.split(key, 3)
        )
        random = jax.vmap(
            lambda key: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
        )(random_keys)
        action, log_prob = policy.sample(params, policy_keys[0], batch.obs)
        following, next_log_prob = policy.sample(params, policy_keys[1], batch.next_obs)
        return Sampled(random, action, log_prob, following, next_log_prob)

    def update(
        state: SACState, batch: Transition, key: Array
    ) -> tuple[SACState, Metrics]:
        target_key, draw_key = jax.random.split(key)
        td = td_target(state, batch, target_key)
        sampled = draw(state.actor.params, batch, draw_key)

        def loss_of(params: PyTree) -> tuple[Array, Metrics]:
            return calibrated_loss(
                lambda obs, action: value_of(params, obs, action),
                batch,
                td,
                sampled,
                weight=weight,
                reward_scale=reward_scale,
                quirks=quirks,
            )

        gradient = jax.grad(loss_of, has_aux=True)
        grads, metrics = parallel.mean(gradient(state.critic.params))
        trained = trainer.descend(state.critic, grads)
        target = optimizers.polyak(state.target, trained.params, target_rate)
        return state._replace(critic=trained, target=target), metrics

    return update

"""Updates of imitation bootstrapped reinforcement learning, with plain arguments.

Hu et al. (2024, arXiv 2311.02198), algorithm 1: a deterministic policy gradient whose
targets take the better of the actions that a frozen cloned policy and the target actor
propose.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dppo_jax.errors import SettingsError
from dppo_jax.learning import optimizers, q_losses
from dppo_jax.learning.learner import Learner, row_keys
from dppo_jax.learning.optimizers import Trained, Trainer
from dppo_jax.learning.soft_actor_critic import Updates, check_chunk, make_round
from dppo_jax.networks import StateActionCritic, random_members
from dppo_jax.policies.chain import ChainPolicy, PolicyParams
from dppo_jax.policies.proposals import ProposalParams, proposal_policy, propose
from dppo_jax.training import parallel
from dppo_jax.types import Array, Metrics, Obs, PyTree, Transition


class IBRLState(NamedTuple):
    """All parameters; `cloned` never changes.

    untrained: the critics as they were at the start, if these act; else None.
    """

    cloned: PyTree
    actor: Trained
    target_actor: PyTree
    critic: Trained
    target: PyTree
    untrained: PyTree | None


def bootstrap_value(cloned_value: Array, actor_value: Array) -> Array:
    """V(s') = max of the two proposals of min_i Q_i(s', a) (IBRL, eq. 2).

    Args:
        cloned_value, actor_value: [N, B] of N target critics.

    Returns:
        [B].
    """
    chex.assert_rank([cloned_value, actor_value], 2)
    chex.assert_equal_shape([cloned_value, actor_value])
    return jnp.maximum(cloned_value.min(0), actor_value.min(0))


def policy_loss(value: Array) -> Array:
    """Minus the mean of min_i Q_i(s, a), for a reparametrised action a of the actor.

    Args:
        value: [N, B] of all critics.
    """
    chex.assert_rank(value, 2)
    return -value.min(0).mean()


def bootstrap_updates(
    policy: ChainPolicy,
    critic: StateActionCritic,
    *,
    actor_trainer: Trainer,
    critic_trainer: Trainer,
    discount: float,
    target_rate: float,
    target_critics: int,
    reward_scale: float = 1.0,
) -> Updates:
    """Make the two updates of a round, on an `IBRLState`.

    Args:
        policy: the Gaussian policy of both networks.
        discount: per chunk.
        target_rate: of both target networks, see `optimizers.polyak`.
        target_critics: critics drawn at random for every target.
        reward_scale: factor of the rewards.
    """
    value_of: Callable[..., Any] = critic.apply
    target_of: Callable[..., Any] = critic.clone(num_critics=target_critics).apply

    def td_target(
        state: IBRLState, batch: Transition, key: Array
    ) -> tuple[Array, Array]:
        member_key, *keys = jax.random.split(key, 3)
        cloned_keys, actor_keys = (row_keys(k, len(batch.reward)) for k in keys)
        members = random_members(member_key, state.target, target_critics)
        obs = batch.next_obs
        cloned, actor = (
            target_of(members, obs, action)
            for action in (
                propose(policy, state.cloned, cloned_keys, obs, deterministic=True),
                propose(policy, state.target_actor, actor_keys, obs),
            )
        )
        td = q_losses.td_target(
            reward_scale * batch.reward,
            bootstrap_value(cloned, actor),
            batch.terminated,
            discount=discount,
        )
        return td, (cloned.min(0) > actor.min(0)).mean()

    def update_critic(
        state: IBRLState, batch: Transition, key: Array
    ) -> tuple[IBRLState, Metrics]:
        td, share = td_target(state, batch, key)

        def loss_of(params: PyTree) -> tuple[Array, Metrics]:
            value = value_of(params, batch.obs, batch.action)
            loss = q_losses.critic_loss(value, td)
            metrics = {"critic_loss": loss, "value": value.mean()}
            return loss, metrics | {"cloned_targets": share}

        gradient = jax.grad(loss_of, has_aux=True)
        grads, metrics = parallel.mean(gradient(state.critic.params))
        trained = critic_trainer.descend(state.critic, grads)
        target = optimizers.polyak(state.target, trained.params, target_rate)
        return state._replace(critic=trained, target=target), metrics

    def update_actor(
        state: IBRLState, batch: Transition, key: Array
    ) -> tuple[IBRLState, Metrics]:
        keys = row_keys(key, len(batch.reward))

        def loss_of(params: PyTree) -> tuple[Array, Metrics]:
            action = propose(policy, params, keys, batch.obs)
            value = value_of(state.critic.params, batch.obs, action)
            loss = policy_loss(value)
            return loss, {"actor_loss": loss}

        gradient = jax.grad(loss_of, has_aux=True)
        grads, metrics = parallel.mean(gradient(state.actor.params))
        trained = actor_trainer.descend(state.actor, grads)
        target = optimizers.polyak(state.target_actor, trained.params, target_rate)
        return state._replace(actor=trained, target_actor=target), metrics

    return Updates(update_critic, update_actor)


def bootstrap_learner(
    policy: ChainPolicy,
    critic: StateActionCritic,
    updates: Updates,
    *,
    actor_trainer: Trainer,
    critic_trainer: Trainer,
    action_shape: tuple[int, ...],
    actor_updates: int = 1,
    beta: float | None = 10.0,
    exponent_twice: bool = False,
    untrained_critics: bool = False,
) -> Learner:
    """Make the Learner; it acts by a `proposal_policy` with the trained critics.

    Args:
        action_shape: [Ta, Da] that the environment executes.
        actor_updates: see `make_round`.
        beta, exponent_twice: see `proposal_policy`.
        untrained_critics: act with the critics as they were at the start.

    Returns:
        A Learner; `init(key, obs, params)` takes the PolicyParams of a cloned policy,
        with which the actor starts, and raises a SettingsError without one.
    """
    acting = proposal_policy(policy, critic, beta=beta, exponent_twice=exponent_twice)

    def init(key: Array, obs: Obs, params: PolicyParams | None = None) -> IBRLState:
        if not isinstance(params, PolicyParams):
            raise SettingsError(
                "ibrl proposes the actions of a cloned Gaussian policy and got none; "
                "clone one with experiments.pretrain, and pass --config.policy=<its "
                "run directory>."
            )
        critic_key, act_key = jax.random.split(key)
        cloned = params.tuned
        action = propose(policy, cloned, act_key[None], obs, deterministic=True)
        check_chunk(action, action_shape)
        critic_params = critic.init(critic_key, obs, action)
        return IBRLState(
            cloned=cloned,
            actor=actor_trainer.init(_copy(cloned)),
            target_actor=_copy(cloned),
            critic=critic_trainer.init(critic_params),
            target=_copy(critic_params),
            untrained=_copy(critic_params) if untrained_critics else None,
        )

    def acts_with(state: IBRLState) -> ProposalParams:
        chooses = state.untrained if untrained_critics else state.critic.params
        return ProposalParams(state.cloned, state.actor.params, chooses)

    return Learner(
        init=jax.jit(init),
        update=make_round(updates, actor_updates=actor_updates),
        params=acts_with,
        act=acting.act,
        finite=("critic_loss", "actor_loss"),
    )


def _copy(params: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, params)

"""The updates of soft actor-critic, with plain arguments, and a Learner made of them.

Haarnoja et al. (2018b, arXiv 1812.05905); `q_losses` has the equations. The critics are
an ensemble of any size, so certain arguments give REDQ (Chen et al. 2021, arXiv
2101.05982).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dppo_jax.errors import SettingsError
from dppo_jax.learning import optimizers, q_losses
from dppo_jax.learning.learner import Learner, row_keys
from dppo_jax.learning.optimizers import Trained, Trainer
from dppo_jax.networks import StateActionCritic, random_members
from dppo_jax.policies.squashed import SquashedPolicy
from dppo_jax.training import parallel
from dppo_jax.types import Array, Metrics, Obs, PyTree, Transition

# How the actor's objective combines the critics: minimum (paper) or mean (REDQ).
COMBINE: dict[str, Callable[..., Array]] = {"min": jnp.min, "mean": jnp.mean}


class SACState(NamedTuple):
    """All trained values; `temperature` holds the logarithm of alpha, a scalar."""

    actor: Trained
    critic: Trained
    target: PyTree
    temperature: Trained


class Trainers(NamedTuple):
    """One optimizer for each part of the state that has gradients."""

    actor: Trainer
    critic: Trainer
    temperature: Trainer


# (state, batch, key) -> (state, metrics)
Update = Callable[[Any, Transition, Array], tuple[Any, Metrics]]


class Updates(NamedTuple):
    """The two updates of a round; both are (state, batch, key) -> (state, metrics).

    critic: updates all critics, then moves the target network towards them.
    actor: updates the actor, and the temperature if there is one.

    The batch is a Transition with leaves [N, ...]; in a sharded step N is this device's
    part.
    """

    critic: Update
    actor: Update


def make_round(
    updates: Updates, *, actor_updates: int = 1
) -> Callable[[Any, Transition, Array], tuple[Any, Metrics]]:
    """Make the `Learner.update` that runs `critic` on every batch, then `actor`.

    Args:
        actor_updates: updates of the actor per round, all on its last batch.
    """

    def update(state: Any, batches: Transition, key: Array) -> tuple[Any, Metrics]:
        critic_key, actor_key = jax.random.split(key)
        state, critic_metrics = jax.lax.scan(
            lambda state, inputs: updates.critic(state, inputs[0], inputs[1]),
            state,
            (batches, jax.random.split(critic_key, len(batches.reward))),
        )
        last = jax.tree.map(lambda x: x[-1], batches)
        state, actor_metrics = jax.lax.scan(
            lambda state, key: updates.actor(state, last, key),
            state,
            jax.random.split(actor_key, actor_updates),
        )
        return state, jax.tree.map(jnp.mean, critic_metrics | actor_metrics)

    return update


def check_chunk(action: Array, action_shape: tuple[int, ...]) -> None:
    """Raise a SettingsError unless a policy's chunk [1, Ta, Da] is what is executed."""
    if action.shape[1:] != action_shape:
        raise SettingsError(
            f"the policy's chunk [Ta, Da] is {action.shape[1:]}, but the "
            f"environment executes {action_shape}; set model.chunk to the number "
            "of executed actions, because Q scores executed chunks."
        )


def soft_updates(
    policy: SquashedPolicy,
    critic: StateActionCritic,
    trainers: Trainers,
    *,
    discount: float,
    target_entropy: float,
    target_rate: float,
    target_critics: int,
    actor_value: str = "min",
    reward_scale: float = 1.0,
    tune_temperature: bool = True,
) -> Updates:
    """Make the two updates of soft actor-critic.

    Args:
        discount: per chunk.
        target_entropy: in nats, of a whole chunk.
        target_rate: see `optimizers.polyak`.
        target_critics: number of critics drawn at random for every update; the minimum
            of their values enters the target.
        actor_value: how the actor's objective combines the critics, a name in
            `COMBINE`.
        reward_scale: factor of the rewards.
        tune_temperature: False keeps the temperature constant.
    """
    value_of: Callable[..., Any] = critic.apply
    target_of: Callable[..., Any] = critic.clone(num_critics=target_critics).apply

    def td_target(state: SACState, batch: Transition, key: Array) -> Array:
        member_key, action_key = jax.random.split(key)
        keys = row_keys(action_key, len(batch.reward))
        action, log_prob = policy.sample(state.actor.params, keys, batch.next_obs)
        members = random_members(member_key, state.target, target_critics)
        value = target_of(members, batch.next_obs, action)
        temperature = jnp.exp(state.temperature.params)
        return q_losses.td_target(
            reward_scale * batch.reward,
            q_losses.soft_value(value, log_prob, temperature),
            batch.terminated,
            discount=discount,
        )

    def update_critic(
        state: SACState, batch: Transition, key: Array
    ) -> tuple[SACState, Metrics]:
        td = td_target(state, batch, key)

        def loss_of(params: PyTree) -> tuple[Array, Metrics]:
            value = value_of(params, batch.obs, batch.action)
            loss = q_losses.critic_loss(value, td)
            return loss, {"critic_loss": loss, "value": value.mean()}

        gradient = jax.grad(loss_of, has_aux=True)
        grads, metrics = parallel.mean(gradient(state.critic.params))
        trained = trainers.critic.descend(state.critic, grads)
        target = optimizers.polyak(state.target, trained.params, target_rate)
        return state._replace(critic=trained, target=target), metrics

    def update_actor(
        state: SACState, batch: Transition, key: Array
    ) -> tuple[SACState, Metrics]:
        keys = row_keys(key, len(batch.reward))

        def losses_of(params: PyTree, log_temperature: Array) -> tuple[Array, Metrics]:
            action, log_prob = policy.sample(params, keys, batch.obs)
            value = value_of(state.critic.params, batch.obs, action)
            value = COMBINE[actor_value](value, axis=0)
            temperature = jnp.exp(jax.lax.stop_gradient(log_temperature))
            loss = q_losses.actor_loss(value, log_prob, temperature)
            # Neither loss has a gradient for the parameters of the other.
            both = loss + q_losses.temperature_loss(
                log_temperature,
                jax.lax.stop_gradient(log_prob),
                target_entropy=target_entropy,
            )
            return both, {
                "actor_loss": loss,
                "entropy": -log_prob.mean(),
                "temperature": temperature,
            }

        gradient = jax.grad(losses_of, argnums=(0, 1), has_aux=True)
        (actor_grads, temperature_grad), metrics = parallel.mean(
            gradient(state.actor.params, state.temperature.params)
        )
        state = state._replace(actor=trainers.actor.descend(state.actor, actor_grads))
        if tune_temperature:
            trained = trainers.temperature.descend(state.temperature, temperature_grad)
            state = state._replace(temperature=trained)
        return state, metrics

    return Updates(update_critic, update_actor)


def soft_actor_critic(
    policy: SquashedPolicy,
    critic: StateActionCritic,
    trainers: Trainers,
    updates: Updates,
    *,
    action_shape: tuple[int, ...],
    actor_updates: int = 1,
    initial_temperature: float = 1.0,
) -> Learner:
    """Make a Learner: a round updates the critics on every batch, then the actor.

    Args:
        action_shape: [Ta, Da] that the environment executes.
        actor_updates: updates of the actor per round, all on its last batch.
        initial_temperature: alpha at the start.

    Returns:
        A Learner; `init(key, obs, params=None)` starts from given parameters of the
        actor, or from new ones. It raises SettingsError if the policy's chunk differs
        from `action_shape`.
    """

    def init(key: Array, obs: Obs, params: PyTree | None = None) -> SACState:
        actor_key, critic_key, *act_keys = jax.random.split(key, 3)
        params = policy.init(actor_key, obs) if params is None else params
        action, _ = policy.act(params, jnp.stack(act_keys), obs)
        check_chunk(action, action_shape)
        critic_params = critic.init(critic_key, obs, action)
        log_temperature = jnp.log(jnp.float32(initial_temperature))
        return SACState(
            actor=trainers.actor.init(params),
            critic=trainers.critic.init(critic_params),
            target=jax.tree.map(jnp.copy, critic_params),
            temperature=trainers.temperature.init(log_temperature),
        )

    return Learner(
        init=jax.jit(init),
        update=make_round(updates, actor_updates=actor_updates),
        params=lambda state: state.actor.params,
        act=policy.act,
        finite=("critic_loss", "actor_loss", "temperature"),
    )

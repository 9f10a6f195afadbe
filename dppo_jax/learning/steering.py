"""Soft actor-critic over the noise of a frozen policy, DSRL (arXiv 2506.15799).

The frozen policy decodes the start w of its chain into an action, a = f(s, w). The
policy over w is that of soft actor-critic; the two variants differ in their critics.

- "sac": one ensemble Q(s, w); decoding is a part of the environment.
- "noise_aliasing": an ensemble Q^A(s, a) with the target

      r + discount (1 - terminated) (min_i Q^A_i(s', f(s', w')) - alpha log pi(w' | s'))

  and an ensemble Q^W(s, w), which the actor maximises and which is distilled from the
  other: Q^W_i(s, w) approaches Q^A_i(s, f(s, w)) for w ~ N(0, I). Starts that give the
  same action share its value, and the critics can learn from transitions of any policy.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dppo_jax.learning import q_losses
from dppo_jax.learning.learner import Learner, row_keys
from dppo_jax.learning.optimizers import Trained
from dppo_jax.learning.soft_actor_critic import SACState, Trainers, Updates
from dppo_jax.networks import StateActionCritic
from dppo_jax.policies.chain import PolicyParams, row_normal
from dppo_jax.policies.squashed import SquashedPolicy
from dppo_jax.policies.steered import SteeredParams, SteeredPolicy
from dppo_jax.training import parallel
from dppo_jax.types import Array, Metrics, Obs, PyTree, Transition

VARIANTS = ("sac", "noise_aliasing")


class SteeringState(NamedTuple):
    """Everything that is trained, and the decoder, which is not.

    soft: actor, critics, their target and temperature. The critics are those of w for
        "sac", those of a for "noise_aliasing".
    noise_critic: Q^W of "noise_aliasing"; None for "sac".
    """

    decoder: PolicyParams
    soft: SACState
    noise_critic: Trained | None


def steering(
    policy: SteeredPolicy,
    critic: StateActionCritic,
    trainers: Trainers,
    make_updates: Callable[[SquashedPolicy], Updates],
    *,
    variant: str,
    action_shape: tuple[int, ...],
    distillation_updates: int,
    initial_temperature: float,
) -> Learner:
    """Make the learner of DSRL.

    A round updates critics, actor and temperature on each of its batches. Its last
    `distillation_updates` batches are for Q^W instead; "sac" has none.

    Args:
        make_updates: policy -> the updates of soft actor-critic with `critic` and
            `trainers`, see `soft_updates`.
        variant: a name in `VARIANTS`.
        action_shape: [Ta, Da] that the environment executes, the first actions of what
            is decoded.
        distillation_updates: fewer than the batches of a round.
        initial_temperature: alpha at the start.

    Returns:
        A Learner; `init(key, obs, params=None)` takes parameters of the frozen policy,
        those of a steered one, or makes new ones. Before the policy acts, starts of
        chains are drawn from N(0, I). The extras of "sac" are the starts.
    """
    aliasing = variant == "noise_aliasing"
    value_of: Callable[..., Any] = critic.apply
    num_executed = action_shape[0]

    def init(
        key: Array, obs: Obs, params: PolicyParams | SteeredParams | None = None
    ) -> SteeringState:
        new_key, critic_key, noise_key, *act_keys = jax.random.split(key, 4)
        new = policy.init(new_key, obs)
        if isinstance(params, SteeredParams):
            new = params
        elif params is not None:
            new = new._replace(decoder=params)
        # Copies, because the host loop donates the buffers of the state.
        new = jax.tree.map(jnp.copy, new)
        action, start = policy.act(new, jnp.stack(act_keys), obs)
        if aliasing:
            critic_params = critic.init(critic_key, obs, action[:, :num_executed])
        else:
            critic_params = critic.init(critic_key, obs, start)
        noise_critic = trainers.critic.init(critic.init(noise_key, obs, start))
        log_temperature = jnp.log(jnp.float32(initial_temperature))
        soft = SACState(
            actor=trainers.actor.init(new.actor),
            critic=trainers.critic.init(critic_params),
            target=jax.tree.map(jnp.copy, critic_params),
            temperature=trainers.temperature.init(log_temperature),
        )
        return SteeringState(new.decoder, soft, noise_critic if aliasing else None)

    def explore(params: SteeredParams, keys: Array, obs: Obs) -> tuple[Array, PyTree]:
        action, start = policy.act(params, keys, obs)
        return action, () if aliasing else start

    def warm_up(params: SteeredParams, keys: Array, obs: Obs) -> tuple[Array, PyTree]:
        start = row_normal(keys, _start_shape(policy, params, obs))
        action = policy.decode(params.decoder, obs, start)
        return action, () if aliasing else start

    def update(
        state: SteeringState, batches: Transition, key: Array
    ) -> tuple[SteeringState, Metrics]:
        soft_key, distill_key = jax.random.split(key)
        num_soft = len(batches.reward) - distillation_updates * aliasing
        first, last = (
            jax.tree.map(lambda x, part=part: x[part], batches)
            for part in (slice(num_soft), slice(num_soft, None))
        )
        keys = jax.random.split(soft_key, num_soft)
        if not aliasing:
            soft, metrics = follow_starts(state, first, keys)
            return state._replace(soft=soft), metrics
        soft, metrics = follow_actions(state, first, keys)
        state = state._replace(soft=soft)
        noise_critic, loss = distil(
            state, last, jax.random.split(distill_key, distillation_updates)
        )
        state = state._replace(noise_critic=noise_critic)
        return state, metrics | {"distillation_loss": loss}

    def follow_starts(
        state: SteeringState, batches: Transition, keys: Array
    ) -> tuple[SACState, Metrics]:
        updates = make_updates(policy.noise)

        def one(soft: SACState, inputs: Any) -> tuple[SACState, Metrics]:
            batch, key = inputs
            critic_key, actor_key = jax.random.split(key)
            soft, critic_metrics = updates.critic(soft, batch, critic_key)
            soft, actor_metrics = updates.actor(soft, batch, actor_key)
            return soft, critic_metrics | actor_metrics

        batches = batches._replace(action=batches.extras)
        soft, metrics = jax.lax.scan(one, state.soft, (batches, keys))
        return soft, jax.tree.map(jnp.mean, metrics)

    def decoded(decoder: PolicyParams, obs: Obs, start: Array) -> Array:
        return policy.decode(decoder, obs, start)[:, :num_executed]

    def follow_actions(
        state: SteeringState, batches: Transition, keys: Array
    ) -> tuple[SACState, Metrics]:
        def sample(params: PyTree, keys: Array, obs: Obs) -> tuple[Array, Array]:
            start, log_prob = policy.noise.sample(params, keys, obs)
            return decoded(state.decoder, obs, start), log_prob

        of_w = state.noise_critic
        assert of_w is not None
        of_actions = make_updates(policy.noise._replace(sample=sample))
        of_starts = make_updates(policy.noise)

        def one(soft: SACState, inputs: Any) -> tuple[SACState, Metrics]:
            batch, key = inputs
            critic_key, actor_key = jax.random.split(key)
            soft, critic_metrics = of_actions.critic(soft, batch, critic_key)
            of_a = soft.critic
            soft, actor_metrics = of_starts.actor(
                soft._replace(critic=of_w), batch, actor_key
            )
            return soft._replace(critic=of_a), critic_metrics | actor_metrics

        soft, metrics = jax.lax.scan(one, state.soft, (batches, keys))
        return soft, jax.tree.map(jnp.mean, metrics)

    def distil(
        state: SteeringState, batches: Transition, keys: Array
    ) -> tuple[Trained, Array]:
        def one(trained: Trained, inputs: Any) -> tuple[Trained, Array]:
            batch, key = inputs
            params = SteeredParams(state.decoder, state.soft.actor.params)
            shape = _start_shape(policy, params, batch.obs)
            start = row_normal(row_keys(key, len(batch.reward)), shape)
            action = decoded(state.decoder, batch.obs, start)
            target = value_of(state.soft.critic.params, batch.obs, action)

            def loss_of(params: PyTree) -> Array:
                value = value_of(params, batch.obs, start)
                return q_losses.critic_loss(value, target)

            loss, grads = parallel.mean(jax.value_and_grad(loss_of)(trained.params))
            return trainers.critic.descend(trained, grads), loss

        assert state.noise_critic is not None
        trained, losses = jax.lax.scan(one, state.noise_critic, (batches, keys))
        return trained, losses.mean()

    return Learner(
        init=jax.jit(init),
        update=update,
        params=lambda state: SteeredParams(state.decoder, state.soft.actor.params),
        act=policy.act,
        finite=("critic_loss", "actor_loss", "temperature"),
        explore=explore,
        warm_up=warm_up,
    )


def _start_shape(
    policy: SteeredPolicy, params: SteeredParams, obs: Obs
) -> tuple[int, ...]:
    """[Ta, Da] of the start of a chain."""
    keys = jax.random.split(jax.random.key(0), len(obs["state"]))
    return jax.eval_shape(policy.act, params, keys, obs)[1].shape[1:]

"""Soft actor-critic over action chunks (Haarnoja et al. 2018b, arXiv 1812.05905).

With more critics than enter a target, their mean for the actor and many updates per
transition it is REDQ (Chen et al. 2021, arXiv 2101.05982).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dppo_jax.learning import off_policy, optimizers, q_losses
from dppo_jax.learning.optimizers import Trained
from dppo_jax.networks import StateActionCritic, random_members
from dppo_jax.policies.squashed import SquashedPolicy
from dppo_jax.training import parallel
from dppo_jax.types import Algorithm, Array, Metrics, Obs, PyTree, Transition, VecEnv

# What the actor ascends, over the critics: the least Q (the paper) or the mean (REDQ).
COMBINE: dict[str, Callable[..., Array]] = {"min": jnp.min, "mean": jnp.mean}


def default_config() -> ConfigDict:
    """Settings of the paper's appendix D."""
    config = ConfigDict()
    config.replay = off_policy.default_config()
    # Actor and temperature are updated once in a round, after the critics; so often on
    # its last batch. The reference implementation has updates_per_round = 2 and 2 here.
    config.actor_updates = 1
    config.discount = 0.99  # per chunk
    config.reward_scale = 1.0
    config.num_critics = 2
    config.target_critics = 2  # drawn anew among them for every target
    config.target_rate = 0.005
    config.actor_value = "min"  # or "mean", over the critics
    for name in ("actor", "critic", "temperature"):
        config[name] = ConfigDict(
            dict(learning_rate=3e-4, weight_decay=0.0, max_grad_norm=placeholder(float))
        )
    config.initial_temperature = 1.0
    config.target_entropy = placeholder(float)  # None: -Ta Da
    config.tune_temperature = True
    return config


class SACState(NamedTuple):
    """What is learned; `temperature` trains its logarithm, a scalar."""

    actor: Trained
    critic: Trained
    target: PyTree
    temperature: Trained


def make(
    env: VecEnv, policy: SquashedPolicy, config: ConfigDict, data: Any = None
) -> Algorithm:
    """Soft actor-critic with the settings of `default_config`.

    Args:
        env: whose action is the policy's whole chunk, [Ta, Da] in [-1, 1].
        config: read are its sections `rollout`, `critic` and `algorithm.sac`.
        data: not used; the algorithm learns from what it collects.

    Returns:
        An Algorithm; `init(key, params=None)` starts from given parameters of the
        actor, or from new ones.

    Raises:
        ValueError: settings that contradict each other, by name.
    """
    del data
    settings = config.algorithm.sac
    _check_config(settings, policy)
    critic = StateActionCritic(**config.critic, num_critics=settings.num_critics)
    return off_policy.off_policy(
        env,
        make_learner(env, policy, critic, settings),
        num_steps=config.rollout.num_steps,
        reset_at_iteration=config.rollout.reset_at_iteration,
        **settings.replay,
    )


def make_learner(
    env: VecEnv, policy: SquashedPolicy, critic: StateActionCritic, config: ConfigDict
) -> off_policy.Learner:
    """The updates of soft actor-critic; `config` is `default_config` with changes."""
    actor_trainer, critic_trainer, temperature_trainer = (
        optimizers.trainer(**config[name])
        for name in ("actor", "critic", "temperature")
    )
    value_of: Callable[..., Any] = critic.apply
    target_of: Callable[..., Any] = critic.clone(
        num_critics=config.target_critics
    ).apply
    target_entropy = config.get("target_entropy")
    if target_entropy is None:
        target_entropy = -float(np.prod(env.action_shape))

    def init(key: Array, obs: Obs, params: PyTree | None = None) -> SACState:
        actor_key, critic_key, *act_keys = jax.random.split(key, 3)
        params = policy.init(actor_key, obs) if params is None else params
        action, _ = policy.act(params, jnp.stack(act_keys), obs)
        if action.shape[1:] != env.action_shape:
            raise ValueError(
                f"the policy's chunk [Ta, Da] is {action.shape[1:]}, but the "
                f"environment executes {env.action_shape}; make model.chunk the number "
                "of executed actions, because Q is of what was executed."
            )
        critic_params = critic.init(critic_key, obs, action)
        return SACState(
            actor=actor_trainer.init(params),
            critic=critic_trainer.init(critic_params),
            target=jax.tree.map(jnp.copy, critic_params),
            temperature=temperature_trainer.init(
                jnp.log(jnp.float32(config.initial_temperature))
            ),
        )

    def update_critic(
        state: SACState, inputs: tuple[Transition, Array]
    ) -> tuple[SACState, Metrics]:
        batch, key = inputs
        member_key, action_key = jax.random.split(key)
        keys = off_policy.row_keys(action_key, len(batch.reward))
        action, log_prob = policy.sample(state.actor.params, keys, batch.next_obs)
        members = random_members(member_key, state.target, config.target_critics)
        target = q_losses.td_target(
            config.reward_scale * batch.reward,
            q_losses.soft_value(
                target_of(members, batch.next_obs, action),
                log_prob,
                jnp.exp(state.temperature.params),
            ),
            batch.terminated,
            discount=config.discount,
        )

        def loss_of(params: PyTree) -> tuple[Array, Metrics]:
            value = value_of(params, batch.obs, batch.action)
            loss = q_losses.critic_loss(value, target)
            return loss, {"critic_loss": loss, "value": value.mean()}

        grads, metrics = parallel.mean(
            jax.grad(loss_of, has_aux=True)(state.critic.params)
        )
        trained = critic_trainer.descend(state.critic, grads)
        target = optimizers.polyak(state.target, trained.params, config.target_rate)
        return state._replace(critic=trained, target=target), metrics

    def update_actor(
        state: SACState, batch: Transition, key: Array
    ) -> tuple[SACState, Metrics]:
        keys = off_policy.row_keys(key, len(batch.reward))

        def losses_of(params: tuple[PyTree, Array]) -> tuple[Array, Metrics]:
            actor, log_temperature = params
            action, log_prob = policy.sample(actor, keys, batch.obs)
            value = value_of(state.critic.params, batch.obs, action)
            value = COMBINE[config.actor_value](value, axis=0)
            temperature = jnp.exp(jax.lax.stop_gradient(log_temperature))
            loss = q_losses.actor_loss(value, log_prob, temperature)
            metrics = {
                "actor_loss": loss,
                "entropy": -log_prob.mean(),
                "temperature": temperature,
            }
            # Neither of the two has a gradient for what the other trains.
            return (
                loss
                + q_losses.temperature_loss(
                    log_temperature,
                    jax.lax.stop_gradient(log_prob),
                    target_entropy=target_entropy,
                ),
                metrics,
            )

        (actor_grads, temperature_grad), metrics = parallel.mean(
            jax.grad(losses_of, has_aux=True)(
                (state.actor.params, state.temperature.params)
            )
        )
        state = state._replace(actor=actor_trainer.descend(state.actor, actor_grads))
        if config.tune_temperature:
            trained = temperature_trainer.descend(state.temperature, temperature_grad)
            state = state._replace(temperature=trained)
        return state, metrics

    def update(
        state: SACState, batches: Transition, key: Array
    ) -> tuple[SACState, Metrics]:
        critic_key, actor_key = jax.random.split(key)
        state, critic_metrics = jax.lax.scan(
            update_critic,
            state,
            (batches, jax.random.split(critic_key, len(batches.reward))),
        )
        last = jax.tree.map(lambda x: x[-1], batches)
        state, actor_metrics = jax.lax.scan(
            lambda state, key: update_actor(state, last, key),
            state,
            jax.random.split(actor_key, config.actor_updates),
        )
        return state, jax.tree.map(jnp.mean, critic_metrics | actor_metrics)

    return off_policy.Learner(
        init=init,
        update=update,
        params=lambda state: state.actor.params,
        act=policy.act,
        finite=("critic_loss", "actor_loss", "temperature"),
    )


def _check_config(config: ConfigDict, policy: SquashedPolicy) -> None:
    if not isinstance(policy, SquashedPolicy):
        raise ValueError(
            "sac needs log-probabilities of a squashed Gaussian policy; set "
            "model.kind='squashed'."
        )
    for name, fits, wanted in (
        ("actor_updates", config.actor_updates >= 1, "at least 1"),
        (
            "target_critics",
            1 <= config.target_critics <= config.num_critics,
            f"between 1 and num_critics={config.num_critics}",
        ),
        ("actor_value", config.actor_value in COMBINE, f"one of {', '.join(COMBINE)}"),
        ("initial_temperature", config.initial_temperature > 0, "positive"),
        ("discount", 0 <= config.discount <= 1, "between 0 and 1"),
        ("target_rate", 0 < config.target_rate <= 1, "between 0 and 1, not 0"),
    ):
        if not fits:
            raise ValueError(f"sac.{name}={config[name]!r} must be {wanted}.")

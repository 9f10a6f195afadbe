"""Settings that the soft actor-critic algorithms share: their checks, their updates."""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dppo_jax.errors import SettingsError
from dppo_jax.learning import off_policy_settings, optimizer_settings, optimizers
from dppo_jax.learning.learner import Learner
from dppo_jax.learning.soft_actor_critic import (
    COMBINE,
    Trainers,
    Update,
    Updates,
    soft_actor_critic,
    soft_updates,
)
from dppo_jax.networks import StateActionCritic
from dppo_jax.policies.squashed import SquashedPolicy
from dppo_jax.types import VecEnv


def default_config() -> ConfigDict:
    """Settings of SAC (arXiv 1812.05905, appendix D)."""
    config = ConfigDict()
    config.replay = off_policy_settings.default_config()
    # At the end of each round, actor and temperature are updated this often, on its
    # last batch. The reference implementation has updates_per_round = 2 and 2 here.
    config.actor_updates = 1
    config.discount = 0.99  # per chunk
    config.reward_scale = 1.0  # a factor of rewards
    config.num_critics = 2  # of the ensemble
    config.target_critics = 2  # critics drawn at random for every target
    config.target_rate = 0.005  # of the moving average of the target critics
    config.actor_value = "min"  # or "mean", over all critics
    for name in ("actor", "critic", "temperature"):
        config[name] = optimizer_settings.default_config(3e-4)
    config.initial_temperature = 1.0  # weight of the entropy
    config.target_entropy = placeholder(float)  # None: -Ta Da
    config.tune_temperature = True  # towards target_entropy
    return config


def make_updates(
    env: VecEnv, policy: SquashedPolicy, critic: StateActionCritic, config: ConfigDict
) -> tuple[Trainers, Updates]:
    """Make the optimizers and the two updates of soft actor-critic."""
    trainers = Trainers(
        *(optimizers.trainer(**config[name]) for name in Trainers._fields)
    )
    target_entropy = config.get("target_entropy")
    if target_entropy is None:
        target_entropy = -float(np.prod(env.action_shape))
    updates = soft_updates(
        policy,
        critic,
        trainers,
        discount=config.discount,
        target_entropy=target_entropy,
        target_rate=config.target_rate,
        target_critics=config.target_critics,
        actor_value=config.actor_value,
        reward_scale=config.reward_scale,
        tune_temperature=config.tune_temperature,
    )
    return trainers, updates


def make_learner(
    env: VecEnv,
    policy: SquashedPolicy,
    critic: StateActionCritic,
    config: ConfigDict,
    *,
    critic_update: Callable[[Trainers], Update] | None = None,
) -> Learner:
    """Make the learner of soft actor-critic.

    Args:
        config: `default_config` with changes.
        critic_update: makes another update of the critics. None: `soft_updates`.
    """
    trainers, updates = make_updates(env, policy, critic, config)
    if critic_update is not None:
        updates = updates._replace(critic=critic_update(trainers))
    return soft_actor_critic(
        policy,
        critic,
        trainers,
        updates,
        action_shape=env.action_shape,
        actor_updates=config.actor_updates,
        initial_temperature=config.initial_temperature,
    )


def check_config(name: str, config: ConfigDict, policy: SquashedPolicy) -> None:
    """Raise a SettingsError that names an invalid setting of the algorithm `name`."""
    if not isinstance(policy, SquashedPolicy):
        raise SettingsError(
            f"{name} needs a squashed Gaussian policy, not a {type(policy).__name__}; "
            "set model.kind='squashed'."
        )
    if config.actor_value not in COMBINE:
        raise SettingsError(
            f"{name}.actor_value={config.actor_value!r} must be one of "
            f"{', '.join(COMBINE)}."
        )
    if not config.initial_temperature > 0:
        raise SettingsError(
            f"{name}.initial_temperature={config.initial_temperature!r} must be "
            "positive."
        )
    check_critic(name, config)


def check_critic(name: str, config: ConfigDict) -> None:
    """Raise a SettingsError for invalid settings of critics and their targets."""
    for setting, fits, wanted in (
        ("actor_updates", config.actor_updates >= 1, "at least 1"),
        (
            "target_critics",
            1 <= config.target_critics <= config.num_critics,
            f"between 1 and num_critics={config.num_critics}",
        ),
        ("reward_scale", config.reward_scale > 0, "positive"),
        ("discount", 0 <= config.discount <= 1, "between 0 and 1"),
        ("target_rate", 0 < config.target_rate <= 1, "between 0 and 1, not 0"),
    ):
        if not fits:
            raise SettingsError(
                f"{name}.{setting}={config[setting]!r} must be {wanted}."
            )

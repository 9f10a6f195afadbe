"""Soft actor-critic over action chunks (Haarnoja et al. 2018b, arXiv 1812.05905).

With num_critics > target_critics, actor_value = "mean" and many updates per transition,
it is REDQ (Chen et al. 2021, arXiv 2101.05982).
"""

from typing import Any

import numpy as np
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dppo_jax.errors import SettingsError
from dppo_jax.learning import off_policy, optimizers
from dppo_jax.learning.soft_actor_critic import (
    COMBINE,
    Trainers,
    Updates,
    soft_actor_critic,
    soft_updates,
)
from dppo_jax.networks import StateActionCritic
from dppo_jax.networks.build_encoder import make_state_action_critic
from dppo_jax.policies.squashed import SquashedPolicy
from dppo_jax.types import Algorithm, VecEnv


def default_config() -> ConfigDict:
    """Settings of the paper's appendix D."""
    config = ConfigDict()
    config.replay = off_policy.default_config()
    # At the end of each round, actor and temperature are updated this often, on its
    # last batch. The reference implementation has updates_per_round = 2 and 2 here.
    config.actor_updates = 1
    config.discount = 0.99  # per chunk
    config.reward_scale = 1.0
    config.num_critics = 2
    config.target_critics = 2  # critics drawn at random for every target
    config.target_rate = 0.005
    config.actor_value = "min"  # or "mean", over all critics
    for name in ("actor", "critic", "temperature"):
        config[name] = ConfigDict(
            dict(learning_rate=3e-4, weight_decay=0.0, max_grad_norm=placeholder(float))
        )
    config.initial_temperature = 1.0
    config.target_entropy = placeholder(float)  # None: -Ta Da
    config.tune_temperature = True
    return config


def make(
    env: VecEnv, policy: SquashedPolicy, config: ConfigDict, data: Any = None
) -> Algorithm:
    """Make soft actor-critic from a whole configuration.

    Args:
        env: its action is the policy's whole chunk, [Ta, Da] in [-1, 1].
        config: its sections `rollout`, `critic` and `algorithm.sac` are read.
        data: not used.

    Returns:
        An Algorithm; `init(key, params=None)` starts from given parameters of the
        actor, or from new ones.

    Raises:
        SettingsError: invalid or contradictory settings, which the message names.
    """
    del data
    settings = config.algorithm.sac
    _check_config(settings, policy)
    critic = make_state_action_critic(config.critic, num_critics=settings.num_critics)
    return off_policy.off_policy(
        env,
        make_learner(env, policy, critic, settings),
        num_chunks=config.rollout.num_chunks,
        reset_at_iteration=config.rollout.reset_at_iteration,
        **settings.replay,
    )


def make_learner(
    env: VecEnv, policy: SquashedPolicy, critic: StateActionCritic, config: ConfigDict
) -> off_policy.Learner:
    """Make the learner; `config` is `default_config` with changes."""
    trainers, updates = make_updates(env, policy, critic, config)
    return soft_actor_critic(
        policy,
        critic,
        trainers,
        updates,
        action_shape=env.action_shape,
        actor_updates=config.actor_updates,
        initial_temperature=config.initial_temperature,
    )


def make_updates(
    env: VecEnv, policy: SquashedPolicy, critic: StateActionCritic, config: ConfigDict
) -> tuple[Trainers, Updates]:
    """Make the optimizers and the two updates that `make_learner` combines."""
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


def _check_config(config: ConfigDict, policy: SquashedPolicy) -> None:
    if not isinstance(policy, SquashedPolicy):
        raise SettingsError(
            f"sac needs a squashed Gaussian policy, not a {type(policy).__name__}; set "
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
        ("reward_scale", config.reward_scale > 0, "positive"),
        ("discount", 0 <= config.discount <= 1, "between 0 and 1"),
        ("target_rate", 0 < config.target_rate <= 1, "between 0 and 1, not 0"),
    ):
        if not fits:
            raise SettingsError(f"sac.{name}={config[name]!r} must be {wanted}.")

"""Cal-QL: conservative Q-learning, calibrated for fine-tuning (arXiv 2303.05479).

Nakamoto et al. (2023): the critics are trained from demonstrations alone first, then
from demonstrations and collected transitions, half of a batch each. A penalty lowers
their values of the policy's actions, but not below the return-to-go of the stored chunk
(`learning/calibrated_q.py`, `learning/returns_to_go.py`).
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from dppo_jax.demonstrations.transitions import transitions_of
from dppo_jax.errors import SettingsError
from dppo_jax.learning import offline_data, quirks, returns_to_go, soft_settings
from dppo_jax.learning.calibrated_q import QUIRKS, calibrated_critic_update
from dppo_jax.learning.learner import Learner
from dppo_jax.learning.off_policy import configured_off_policy
from dppo_jax.learning.soft_actor_critic import Trainers, Update
from dppo_jax.networks import StateActionCritic
from dppo_jax.networks.build_encoder import make_state_action_critic
from dppo_jax.policies.squashed import SquashedPolicy
from dppo_jax.types import Algorithm, VecEnv


def default_config() -> ConfigDict:
    """Settings of the reference implementation for HalfCheetah.

    Those of the paper are the same, except that it draws ten random actions and as many
    of the policy (appendix D).
    """
    config = soft_settings.default_config()
    config.replay.update(random_steps=0, min_fill=0)
    config.offline_share = 0.5  # of a batch that is demonstrations, later on
    config.offline_iterations = 100  # before anything is collected
    config.offline_updates = 1000  # of each of these iterations
    for name in ("actor", "temperature"):
        config[name].learning_rate = 1e-4
    config.backup_actions = 10  # of the policy, the best of which is in a target
    config.random_actions = 4  # uniform ones in the penalty, and as many of the policy
    config.penalty_weight = 5.0  # of the conservative penalty
    config.reference_quirks = ()  # names in learning.calibrated_q.QUIRKS
    # A target takes all critics, and the actor their minimum.
    del config.target_critics, config.actor_value
    return config


def make(
    env: VecEnv, policy: SquashedPolicy, config: ConfigDict, data: Any = None
) -> Algorithm:
    """Make Cal-QL as `rlpd.make` makes RLPD, with the section `algorithm.calql`."""
    settings = config.algorithm.calql
    _check_config(settings, policy)
    given = transitions_of(env, data, algorithm="calql", discount=settings.discount)
    critic = make_state_action_critic(config.critic, num_critics=settings.num_critics)
    items = offline_data.as_items(given, with_returns=True)
    num_chunks, num_groups = config.rollout.num_chunks, settings.replay.num_groups
    make_iteration = functools.partial(
        configured_off_policy,
        "calql",
        env,
        make_learner(env, policy, critic, settings),
        config,
        offline=offline_data.offline_replay(items, num_groups=num_groups),
    )
    algorithm = returns_to_go.with_returns(
        make_iteration(offline_share=settings.offline_share),
        discount=settings.discount,
        num_new=num_chunks,
        max_steps=env.max_steps,
    )
    rate = settings.offline_updates / (env.num_envs * num_chunks)
    return offline_data.with_offline_phase(
        algorithm,
        make_iteration(offline_share=1.0, min_fill=0, updates_per_transition=rate),
        num_iterations=settings.offline_iterations,
    )


def make_learner(
    env: VecEnv, policy: SquashedPolicy, critic: StateActionCritic, config: ConfigDict
) -> Learner:
    """Make the learner; `config` is `default_config` with changes."""

    def critic_update(trainers: Trainers) -> Update:
        return calibrated_critic_update(
            policy,
            critic,
            trainers.critic,
            discount=config.discount,
            target_rate=config.target_rate,
            backup_actions=config.backup_actions,
            random_actions=config.random_actions,
            weight=config.penalty_weight,
            reward_scale=config.reward_scale,
            quirks=tuple(config.reference_quirks),
        )

    return soft_settings.make_learner(
        env, policy, critic, _all_critics(config), critic_update=critic_update
    )


def _all_critics(config: ConfigDict) -> ConfigDict:
    """The settings of soft actor-critic that this algorithm does not leave open."""
    settings = config.copy_and_resolve_references().unlock()
    settings.update(target_critics=config.num_critics, actor_value="min")
    return settings


def _check_config(config: ConfigDict, policy: SquashedPolicy) -> None:
    soft_settings.check_config("calql", _all_critics(config), policy)
    quirks.check_quirks("calql", config.reference_quirks, QUIRKS)
    for name in ("backup_actions", "random_actions"):
        if config[name] < 1:
            raise SettingsError(f"calql.{name}={config[name]} must be at least 1.")
    if not config.penalty_weight >= 0:
        raise SettingsError(
            f"calql.penalty_weight={config.penalty_weight} must not be negative."
        )
    if config.offline_iterations < 0:
        raise SettingsError(
            f"calql.offline_iterations={config.offline_iterations} must not be "
            "negative."
        )
    per_round = config.replay.updates_per_round
    if config.offline_updates < 1 or config.offline_updates % max(per_round, 1):
        raise SettingsError(
            f"calql.offline_updates={config.offline_updates} must be a multiple of "
            f"replay.updates_per_round={per_round}, at least one."
        )

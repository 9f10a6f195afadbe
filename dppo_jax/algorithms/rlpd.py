"""RLPD: soft actor-critic with demonstrations in every batch (arXiv 2302.02948).

Ball et al. (2023), algorithm 1: half of every batch are demonstrations, the critics are
a large ensemble with layer normalisation (`critic.layer_norm`), a target takes the
least value of two random ones of them, and there are many updates for every transition.
"""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dppo_jax.demonstrations.transitions import transitions_of
from dppo_jax.learning import offline_data, quirks, soft_settings
from dppo_jax.learning.learner import Learner
from dppo_jax.learning.off_policy import configured_off_policy
from dppo_jax.networks import StateActionCritic
from dppo_jax.networks.build_encoder import make_state_action_critic
from dppo_jax.policies.squashed import SquashedPolicy
from dppo_jax.types import Algorithm, VecEnv

# same_initialisation: all critics start from the same parameters, and stay equal.
QUIRKS = ("same_initialisation",)


def default_config() -> ConfigDict:
    """Settings of the paper (table 1) and its code for the locomotion tasks.

    The reference implementation has the same for HalfCheetah, with a target entropy of
    -Ta Da.
    """
    config = soft_settings.default_config()
    config.replay.updates_per_transition = 20.0
    config.replay.updates_per_round = 20  # The actor learns once for each transition.
    config.offline_share = 0.5  # of a batch that is demonstrations
    config.num_critics = 10  # of the ensemble
    config.target_critics = 2
    config.actor_value = "mean"  # or "min", over all critics
    # None here means -Ta Da / 2.
    config.reference_quirks = ()  # names in QUIRKS
    return config


def make(
    env: VecEnv, policy: SquashedPolicy, config: ConfigDict, data: Any = None
) -> Algorithm:
    """Make RLPD from a whole configuration.

    Args:
        env: its action is the policy's whole chunk, [Ta, Da] in [-1, 1].
        config: its sections `rollout`, `critic` and `algorithm.rlpd` are read.
        data: `Episodes` with rewards, normalised as the policy's.

    Returns:
        An Algorithm; `init(key, params=None)` starts from given parameters of the
        actor, or from new ones.

    Raises:
        SettingsError: no data or data that cannot be used, invalid or contradictory
            settings; the message names them.
    """
    settings = config.algorithm.rlpd
    soft_settings.check_config("rlpd", settings, policy)
    quirks.check_quirks("rlpd", settings.reference_quirks, QUIRKS)
    given = transitions_of(env, data, algorithm="rlpd", discount=settings.discount)
    critic = make_state_action_critic(config.critic, num_critics=settings.num_critics)
    return configured_off_policy(
        "rlpd",
        env,
        make_learner(env, policy, critic, settings),
        config,
        offline=offline_data.offline_replay(
            offline_data.as_items(given), num_groups=settings.replay.num_groups
        ),
        offline_share=settings.offline_share,
    )


def make_learner(
    env: VecEnv, policy: SquashedPolicy, critic: StateActionCritic, config: ConfigDict
) -> Learner:
    """Make the learner; `config` is `default_config` with changes."""
    settings: Any = config.copy_and_resolve_references()
    if settings.target_entropy is None:
        settings.target_entropy = -float(np.prod(env.action_shape)) / 2
    learner = soft_settings.make_learner(env, policy, critic, settings)
    if "same_initialisation" in config.reference_quirks:
        return quirks.with_equal_members(learner)
    return learner

"""Soft actor-critic over action chunks (Haarnoja et al. 2018b, arXiv 1812.05905).

With num_critics > target_critics, actor_value = "mean" and many updates per transition,
it is REDQ (Chen et al. 2021, arXiv 2101.05982).
"""

from typing import Any

from ml_collections import ConfigDict

from dppo_jax.learning import off_policy, soft_settings
from dppo_jax.learning.soft_settings import make_learner
from dppo_jax.networks.build_encoder import make_state_action_critic
from dppo_jax.policies.squashed import SquashedPolicy
from dppo_jax.types import Algorithm, VecEnv

__all__ = ["default_config", "make", "make_learner"]


def default_config() -> ConfigDict:
    """The settings that SAC shares with RLPD and Cal-QL."""
    return soft_settings.default_config()


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
    soft_settings.check_config("sac", settings, policy)
    critic = make_state_action_critic(config.critic, num_critics=settings.num_critics)
    learner = make_learner(env, policy, critic, settings)
    return off_policy.configured_off_policy("sac", env, learner, config)

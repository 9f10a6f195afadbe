"""IBRL: imitation bootstrapped reinforcement learning (arXiv 2311.02198).

Hu et al. (2024): a frozen cloned policy proposes an action beside that of the actor,
when acting and in the targets, and the critics choose. The replay buffer starts with
the demonstrations, and the actor as a copy of the cloned policy.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from dppo_jax.demonstrations.dataset import Episodes
from dppo_jax.demonstrations.transitions import transitions_of
from dppo_jax.errors import SettingsError
from dppo_jax.learning import (
    off_policy_settings,
    offline_data,
    optimizer_settings,
    optimizers,
    quirks,
    soft_settings,
)
from dppo_jax.learning.imitation_bootstrap import bootstrap_learner, bootstrap_updates
from dppo_jax.learning.learner import Learner
from dppo_jax.learning.off_policy import configured_off_policy
from dppo_jax.networks import StateActionCritic
from dppo_jax.networks.build_encoder import make_state_action_critic
from dppo_jax.policies.chain import ChainPolicy
from dppo_jax.policies.proposals import ProposalPolicy, proposal_policy
from dppo_jax.types import Algorithm, VecEnv

# same_initialisation: all critics start from the same parameters, and stay equal.
# untrained_critics: the critics as they were at the start choose the actions.
# exponent_twice: exploring draws with softmax(exp(beta Q)), not softmax(beta Q).
QUIRKS = ("same_initialisation", "untrained_critics", "exponent_twice")


def default_config() -> ConfigDict:
    """Settings of the reference implementation for HalfCheetah; the paper's are alike.

    It makes five updates of the critics and one of the actor for every two chunks.
    """
    config = ConfigDict()
    config.replay = off_policy_settings.default_config()
    config.replay.update(capacity=300_000, random_steps=0, min_fill=0)
    config.replay.update(updates_per_transition=2.5, updates_per_round=5)
    config.actor_updates = 1  # per round
    config.discount = 0.99  # per chunk
    config.reward_scale = 1.0  # a factor of rewards
    config.num_critics = 5  # of the ensemble
    config.target_critics = 2  # critics drawn at random for every target
    config.target_rate = 0.01  # of the target critics and the target actor
    # Exploring draws a proposal by softmax(beta Q); None: it takes the better one.
    config.beta = FieldReference(10.0, field_type=float)
    for name in ("actor", "critic"):
        config[name] = optimizer_settings.default_config(1e-4)
    config.reference_quirks = ()  # names in QUIRKS
    return config


def make_acting(
    policy: ChainPolicy, config: Mapping[str, Any], *, action_dim: int | None = None
) -> ProposalPolicy:
    """Make the policy that chooses between a cloned and a trained network.

    Args:
        config: a whole configuration, or what `config.json` holds; its sections
            `algorithm.ibrl` and `critic` are read.
        action_dim: not used.
    """
    del action_dim
    settings = config["algorithm"]["ibrl"]
    return proposal_policy(
        policy,
        make_state_action_critic(
            ConfigDict(config["critic"]), num_critics=settings["num_critics"]
        ),
        beta=settings["beta"],
        exponent_twice="exponent_twice" in settings["reference_quirks"],
    )


def make(
    env: VecEnv, policy: ChainPolicy, config: ConfigDict, data: Episodes | None = None
) -> Algorithm:
    """Make IBRL from a whole configuration.

    Args:
        env: its action is the policy's whole chunk, [Ta, Da].
        policy: a Gaussian policy.
        config: its sections `rollout`, `critic` and `algorithm.ibrl` are read.
        data: demonstrations with rewards, normalised as the policy's.

    Returns:
        An Algorithm; `init(key, params)` needs the parameters of the cloned policy.

    Raises:
        SettingsError: no data or data that cannot be used, invalid or contradictory
            settings; the message names them.
    """
    settings = config.algorithm.ibrl
    _check_config(settings, policy)
    given = transitions_of(env, data, algorithm="ibrl", discount=settings.discount)
    items = offline_data.as_items(given)
    num_items, capacity = len(items.reward), settings.replay.capacity
    if not env.num_envs <= num_items <= capacity - capacity % env.num_envs:
        raise SettingsError(
            f"the {num_items} transitions of the demonstrations do not fit ibrl.replay."
            f"capacity={capacity} in rings of {env.num_envs} environments; raise the "
            "capacity, or lower rollout.num_envs if there are fewer transitions."
        )
    critic = make_state_action_critic(config.critic, num_critics=settings.num_critics)
    learner = make_learner(env, policy, critic, settings)
    algorithm = configured_off_policy("ibrl", env, learner, config)
    return offline_data.preload(algorithm, items)


def make_learner(
    env: VecEnv, policy: ChainPolicy, critic: StateActionCritic, config: ConfigDict
) -> Learner:
    """Make the learner; `config` is `default_config` with changes."""
    trainers = {
        f"{name}_trainer": optimizers.trainer(**config[name])
        for name in ("actor", "critic")
    }
    updates = bootstrap_updates(
        policy,
        critic,
        **trainers,
        discount=config.discount,
        target_rate=config.target_rate,
        target_critics=config.target_critics,
        reward_scale=config.reward_scale,
    )
    learner = bootstrap_learner(
        policy,
        critic,
        updates,
        **trainers,
        action_shape=env.action_shape,
        actor_updates=config.actor_updates,
        beta=config.beta,
        exponent_twice="exponent_twice" in config.reference_quirks,
        untrained_critics="untrained_critics" in config.reference_quirks,
    )
    if "same_initialisation" in config.reference_quirks:
        return quirks.with_equal_members(learner)
    return learner


def _check_config(config: ConfigDict, policy: ChainPolicy) -> None:
    is_gaussian = isinstance(policy, ChainPolicy) and not (
        policy.denoises or policy.joint
    )
    if not is_gaussian:
        raise SettingsError(
            "ibrl needs a Gaussian policy, with one move and one mode; set "
            "model.kind='gaussian'."
        )
    soft_settings.check_critic("ibrl", config)
    quirks.check_quirks("ibrl", config.reference_quirks, QUIRKS)
    if config.beta is not None and not config.beta > 0:
        raise SettingsError(
            f"ibrl.beta={config.beta} must be positive; use None to explore with the "
            "better proposal."
        )

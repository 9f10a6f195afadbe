"""Diffusion steering, DSRL (arXiv 2506.15799): RL in a frozen policy's noise space.

Soft actor-critic chooses the noise from which the chains of the cloned policy start.
In deterministic mode (DDIM with eta = 0, or a flow) the action is a function of this
noise, so every action is one that the cloned policy can take. See
`learning/steering.py` for the two variants.

The baseline is the cloned policy, whose chains start from N(0, I): score it in its
deterministic mode with the same settings, `experiments.evaluate
--config.policy=RUN_OF_PRETRAIN --config.evaluate.deterministic=True`. The bound cuts
off the tails of N(0, I), so the actor cannot imitate it exactly.

Not copied from the published code: it bounds the noise of "noise_aliasing" by the
actions' bounds whatever `noise_bound` is, and it bootstraps nothing after a time limit.
"""

import functools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dppo_jax.errors import SettingsError
from dppo_jax.learning import (
    off_policy,
    off_policy_settings,
    optimizer_settings,
    optimizers,
)
from dppo_jax.learning.soft_actor_critic import COMBINE, Trainers, soft_updates
from dppo_jax.learning.steering import VARIANTS, steering
from dppo_jax.networks import GaussianMLP
from dppo_jax.networks.build_encoder import make_encoder, make_state_action_critic
from dppo_jax.policies import (
    ChainPolicy,
    SteeredPolicy,
    scaled_policy,
    squashed_policy,
    steered_policy,
)
from dppo_jax.types import Algorithm, VecEnv

# Settings of `soft_updates`.
_UPDATES = (
    *("discount", "target_entropy", "target_rate", "target_critics"),
    *("actor_value", "reward_scale", "tune_temperature"),
)


def default_config() -> ConfigDict:
    """The published code's settings for Hopper, of which `config.critic` has a part."""
    config = ConfigDict()
    config.variant = "noise_aliasing"  # or "sac"
    # Entries of the noise stay within +- this.
    config.noise_bound = 1.5
    config.replay = off_policy_settings.default_config()
    # 20 updates of soft actor-critic and 10 distillations for every two steps of 4
    # environments, and 2000 steps under N(0, I) before them.
    config.replay.update(updates_per_round=30, updates_per_transition=3.75)
    config.replay.update(random_steps=8000, min_fill=8000)
    config.distillation_updates = 10  # of those of a round
    # The network of the actor, a squashed Gaussian over the noise.
    config.network = ConfigDict(
        dict(
            hidden_sizes=(128, 128, 128),
            activation="tanh",
            layer_norm=True,
            compute_dtype="float32",
            std_min=0.0067,
            std_max=7.39,
        )
    )
    config.discount = 0.99  # per chunk
    config.reward_scale = 1.0  # a factor of rewards
    config.num_critics = 2  # of the ensemble
    config.target_critics = 2  # critics drawn at random for every target
    config.target_rate = 0.005  # of the moving average of the target critics
    config.actor_value = "min"  # or "mean", over all critics
    for name in ("actor", "critic", "temperature"):
        config[name] = optimizer_settings.default_config(3e-4)
    config.initial_temperature = 1.0  # weight of the entropy
    config.target_entropy = 0.0  # of the noise
    config.tune_temperature = True  # towards target_entropy
    return config


def make_acting(
    policy: ChainPolicy, config: Mapping[str, Any], *, action_dim: int
) -> SteeredPolicy:
    """Make the policy that acts: the frozen one, steered by a squashed Gaussian.

    Args:
        policy: whose chains draw nothing but their start if deterministic.
        config: a whole configuration, or what `config.json` holds; its sections
            `algorithm.dsrl` and `model` are read.
        action_dim: Da.

    Raises:
        SettingsError: another policy, or a bound that is not positive.
    """
    settings, model = config["algorithm"]["dsrl"], config["model"]
    bound = settings["noise_bound"]
    if not bound > 0:
        raise SettingsError(f"algorithm.dsrl.noise_bound={bound} must be positive.")
    network = dict(settings["network"])
    network["hidden_sizes"] = tuple(network["hidden_sizes"])
    noise = GaussianMLP(
        action_dim=action_dim,
        chunk=model["chunk"],
        tanh_output=False,
        encoder=make_encoder(
            model["network"].get("encoder"), compute_dtype=network["compute_dtype"]
        ),
        **network,
    )
    return steered_policy(policy, scaled_policy(squashed_policy(noise), bound))


def make(
    env: VecEnv, policy: ChainPolicy, config: ConfigDict, data: Any = None
) -> Algorithm:
    """Make DSRL from a whole configuration.

    Args:
        env: its action is a chunk, [Ta, Da].
        policy: the frozen policy, see `make_acting`.
        config: its sections `algorithm.dsrl`, `rollout`, `critic` and `model` are read.
        data: not used.

    Returns:
        An Algorithm; `init(key, params=None)` starts from parameters of the frozen
        policy, from those of a steered one, or from new networks.

    Raises:
        SettingsError: invalid or contradictory settings, which the message names.
    """
    del data
    settings = config.algorithm.dsrl
    _check_config(settings)
    acting = make_acting(policy, config, action_dim=env.action_shape[-1])
    critic = make_state_action_critic(config.critic, num_critics=settings.num_critics)
    trainers = Trainers(
        *(optimizers.trainer(**settings[name]) for name in Trainers._fields)
    )
    learner = steering(
        acting,
        critic,
        trainers,
        functools.partial(
            soft_updates,
            critic=critic,
            trainers=trainers,
            **{name: settings[name] for name in _UPDATES},
        ),
        variant=settings.variant,
        action_shape=env.action_shape,
        distillation_updates=settings.distillation_updates,
        initial_temperature=settings.initial_temperature,
    )
    return off_policy.configured_off_policy("dsrl", env, learner, config)


def _check_config(config: ConfigDict) -> None:
    distilled, per_round = config.distillation_updates, config.replay.updates_per_round
    for name, fits, wanted in (
        ("variant", config.variant in VARIANTS, f"one of {', '.join(VARIANTS)}"),
        (
            "distillation_updates",
            config.variant == "sac" or 1 <= distilled < per_round,
            f"at least 1 and below replay.updates_per_round={per_round}",
        ),
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
            raise SettingsError(
                f"algorithm.dsrl.{name}={config[name]!r} must be {wanted}."
            )

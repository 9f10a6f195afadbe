"""Settings of PPO, what contradicts what, and the learning rates they describe."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from dppo_jax.errors import SettingsError
from dppo_jax.learning import chain_losses, optimizers
from dppo_jax.policies import ChainPolicy
from dppo_jax.types import Array

MINIBATCHES = ("pair", "chain")


def default_config() -> ConfigDict:
    """Settings of the paper where it names one for all tasks; see its appendix."""
    config = ConfigDict()
    # Actions of a chunk that count in a log-probability; None: those executed.
    config.reward_horizon = placeholder(int)
    # Where log-probabilities are clamped, None: nowhere; and whether that is done entry
    # by entry or to their mean, None: as the reference does, entries of a diffusion
    # policy and the mean of a Gaussian one.
    config.log_prob_bounds = FieldReference(
        chain_losses.LOG_PROB_BOUNDS, field_type=tuple
    )
    config.bound_entries = placeholder(bool)
    config.discount = 0.99
    config.gae_lambda = 0.95
    config.denoising_discount = 0.99
    config.scale_rewards = True
    config.reward_scale = 1.0
    config.batch_size = 1000  # pairs (t, k)
    # "pair" shuffles the pairs, as the reference does; "chain" shuffles environment
    # steps and takes all K' moves of each: observations are encoded and values
    # computed once for K' pairs, which are no longer independent of each other.
    config.minibatch = "pair"
    # Shuffle within each of so many equal groups of neighbouring environments, of which
    # every minibatch takes the same number of items: what many devices need, whose
    # number must divide it, and what makes one device equal to them.
    config.shuffle_groups = 1
    # Rows of the policy whose gradients are computed at a time; their mean is exact.
    # None: as many as are fast on a CPU, all on an accelerator.
    config.micro_batch_size = placeholder(int)
    config.epochs = 5
    config.clip_top = 0.01
    config.clip_base = 0.001
    config.clip_rate = 3.0
    config.value_clip = placeholder(float)
    config.value_coef = 0.5
    config.entropy_coef = 0.0
    config.clone_coef = 0.0
    config.normalize_advantage = True
    config.advantage_quantiles = (0.0, 1.0)
    config.target_kl = placeholder(float)
    config.critic_warmup = 0
    for name, rate in (("actor", 1e-4), ("critic", 1e-3)):
        config[name] = ConfigDict(
            dict(
                learning_rate=rate,
                min_learning_rate=rate,
                cycle_steps=1000,
                warmup_steps=10,
                weight_decay=0.0,
                max_grad_norm=placeholder(float),
            )
        )
    # Annealing, both off: the sampling floor moves to min_std_end over
    # min_std_steps iterations; every tuned_steps_every iterations the frozen
    # network is replaced by the tuned one and keeps tuned_steps_drop more moves.
    config.min_std_end = 0.1
    config.min_std_steps = 0
    config.tuned_steps_drop = 0
    config.tuned_steps_every = 0
    # Pixels that the images of an iteration are shifted by at most, once and at random,
    # before anything is learned from them; 4 in the paper, 0: none.
    config.random_shift = 0
    return config


def check_config(config: ConfigDict, policy: ChainPolicy) -> None:
    """Refuse settings that contradict each other; raises SettingsError by name."""
    if not isinstance(policy, ChainPolicy):
        raise SettingsError(
            f"ppo needs the moves of a chain, not a {type(policy).__name__}; set "
            "model.kind='diffusion' or 'gaussian'."
        )
    if config.minibatch not in MINIBATCHES:
        raise SettingsError(
            f"minibatch={config.minibatch!r} is unknown; use one of "
            f"{', '.join(MINIBATCHES)}."
        )
    if config.minibatch == "chain" and config.batch_size % policy.num_tuned_steps:
        raise SettingsError(
            f"batch_size={config.batch_size} must be a multiple of the "
            f"{policy.num_tuned_steps} moves of a chain with minibatch='chain'; change "
            "one."
        )
    for name, cure in (
        ("target_kl", "None never stops an iteration early"),
        ("value_clip", "None leaves values free"),
    ):
        if config[name] is not None and not config[name] > 0:
            raise SettingsError(f"{name}={config[name]} must be positive; {cure}.")
    if config.reward_scale <= 0:
        raise SettingsError(f"reward_scale={config.reward_scale} must be positive.")
    for name in (
        *("value_coef", "entropy_coef", "clone_coef", "critic_warmup"),
        *("min_std_end", "min_std_steps", "tuned_steps_drop", "tuned_steps_every"),
        "random_shift",
    ):
        if config[name] < 0:
            raise SettingsError(f"{name}={config[name]} must not be negative.")
    for name in ("epochs", "shuffle_groups"):
        if config[name] < 1:
            raise SettingsError(f"{name}={config[name]} must be at least 1.")
    if config.min_std_steps > 0 and not policy.denoises:
        raise SettingsError(
            f"min_std_steps={config.min_std_steps} anneals the sampling floor of a "
            "denoising chain, but this policy is a Gaussian, whose standard deviation "
            "is scored as it is; use 0, and set its standard deviation instead."
        )
    if (config.tuned_steps_drop > 0) != (config.tuned_steps_every > 0):
        raise SettingsError(
            f"tuned_steps_drop={config.tuned_steps_drop} and "
            f"tuned_steps_every={config.tuned_steps_every} anneal K' together; set "
            "both or none."
        )
    for name in ("discount", "gae_lambda", "denoising_discount"):
        if not 0 <= config[name] <= 1:
            raise SettingsError(f"{name}={config[name]} must lie in [0, 1].")
    lower, upper = config.advantage_quantiles
    if not 0 <= lower < upper <= 1:
        raise SettingsError(
            f"advantage_quantiles={(lower, upper)} must satisfy "
            "0 <= lower < upper <= 1."
        )
    if not 0 < config.clip_base <= config.clip_top or config.clip_rate <= 0:
        raise SettingsError(
            f"the clip range needs 0 < clip_base <= clip_top and clip_rate > 0, got "
            f"clip_base={config.clip_base}, clip_top={config.clip_top}, "
            f"clip_rate={config.clip_rate}."
        )
    for name in ("actor", "critic"):
        optimizers.check_cosine_restarts(name, **_rate_settings(config[name]))
        if config[name].weight_decay < 0:
            raise SettingsError(
                f"{name}: weight_decay={config[name].weight_decay} must not be "
                "negative."
            )
        norm = config[name].max_grad_norm
        if norm is not None and not norm > 0:
            raise SettingsError(
                f"{name}: max_grad_norm={norm} must be positive; None clips nothing."
            )


def check_groups(config: ConfigDict, policy: ChainPolicy, *, num_envs: int) -> None:
    """Raise SettingsError if groups of environments are not equal."""
    chains = config.minibatch == "chain"
    items = config.batch_size // (policy.num_tuned_steps if chains else 1)
    for size, what in (
        (num_envs, "environments"),
        (items, f"{'chains' if chains else 'pairs'} of a minibatch"),
    ):
        if size % config.shuffle_groups:
            raise SettingsError(
                f"shuffle_groups={config.shuffle_groups} must divide the {size} {what};"
                " change one of them."
            )


def check_devices(config: ConfigDict, num_devices: int) -> None:
    """Refuse what cannot be computed on many devices; raises SettingsError by name."""
    if config.shuffle_groups % num_devices:
        raise SettingsError(
            f"algorithm.ppo.shuffle_groups={config.shuffle_groups} must be a multiple "
            f"of the {num_devices} devices, each of which shuffles its own "
            "environments; "
            f"set it to {num_devices}, or use fewer devices."
        )
    if tuple(config.advantage_quantiles) != (0.0, 1.0):
        quantiles = tuple(config.advantage_quantiles)
        raise SettingsError(
            f"algorithm.ppo.advantage_quantiles={quantiles} look at a whole minibatch, "
            f"which is spread over {num_devices} devices; use one "
            "device, or (0.0, 1.0)."
        )


def log_prob_mean(
    config: ConfigDict, policy: ChainPolicy, *, executed: int
) -> Callable[[Array], Array]:
    """How log-probabilities of entries become that of a move, [..., Ta, Da] -> [...].

    Args:
        executed: actions of a chunk that the environment executes; those count unless
            `reward_horizon` says otherwise.

    Raises:
        SettingsError: a reward horizon that is no number of executed actions.
    """
    horizon = config.get("reward_horizon")
    horizon = executed if horizon is None else horizon
    if not 1 <= horizon <= executed:
        raise SettingsError(
            f"reward_horizon={horizon} must lie between 1 and the {executed} executed "
            "actions of a chunk; None counts all of these."
        )
    bounds, bound_entries = config.get("log_prob_bounds"), config.get("bound_entries")
    return functools.partial(
        chain_losses.mean_log_prob,
        horizon=horizon,
        bounds=None if bounds is None else tuple(bounds),
        bound_entries=policy.denoises if bound_entries is None else bound_entries,
    )


def learning_rates(config: ConfigDict, iteration: Array) -> tuple[Array, Array]:
    """Actor and critic rate; the actor's clock starts after the critic's warm-up."""
    actor_step = jnp.maximum(iteration - config.critic_warmup, 0)
    return (
        optimizers.cosine_restarts(actor_step, **_rate_settings(config.actor)),
        optimizers.cosine_restarts(iteration, **_rate_settings(config.critic)),
    )


def _rate_settings(config: ConfigDict) -> dict[str, Any]:
    return dict(
        peak=config.learning_rate,
        floor=config.min_learning_rate,
        cycle_steps=config.cycle_steps,
        warmup_steps=config.warmup_steps,
    )

"""Settings that on-policy algorithms have in common, and their checks."""

from collections.abc import Callable

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dppo_jax.errors import SettingsError
from dppo_jax.learning import optimizers
from dppo_jax.networks.build_encoder import make_state_critic
from dppo_jax.policies.chain import ChainPolicy
from dppo_jax.types import Algorithm, VecEnv


def default_config() -> ConfigDict:
    """Settings that on-policy algorithms have in common."""
    config = ConfigDict()
    config.discount = 0.99  # per chunk
    config.gae_lambda = 0.95  # lambda of generalised advantage estimation
    config.scale_rewards = True  # by the running standard deviation of returns
    config.reward_scale = 1.0  # a factor of what scale_rewards leaves
    # The number of equal groups of neighbouring environments. Each is shuffled by
    # itself, and every minibatch takes equally many items from each. It must be a
    # multiple of the number of devices. With the same value, one device computes what
    # many devices compute.
    config.shuffle_groups = 1
    # Samples whose gradients are computed at once; the mean over all is exact.
    # None: a size that is fast on a CPU, all samples on an accelerator.
    config.micro_batch_size = placeholder(int)
    config.epochs = 5  # passes over the data of an iteration
    config.value_clip = placeholder(float)  # of the change of a value; None: none
    config.value_coef = 0.5  # of the loss of V
    config.normalize_advantage = True  # to mean 0 and deviation 1, by minibatch
    config.target_kl = placeholder(float)  # ends an iteration early; None: never
    config.critic_warmup = 0  # iterations in which only the critic learns
    for name, rate in (("actor", 1e-4), ("critic", 1e-3)):
        config[name] = ConfigDict(
            dict(
                learning_rate=rate,  # the highest one
                min_learning_rate=rate,  # at the end of a cycle
                cycle_steps=1000,  # iterations of a cosine cycle, warm-up included
                warmup_steps=10,  # iterations in which the rate rises
                weight_decay=0.0,  # of AdamW, times the learning rate
                max_grad_norm=placeholder(float),  # None: no limit
            )
        )
    return config


def check_config(config: ConfigDict) -> None:
    """Raise a SettingsError that names an invalid one of the common settings."""
    for name, cure in (
        ("target_kl", "use None to never stop an iteration early"),
        ("value_clip", "use None to not clip values"),
    ):
        if config[name] is not None and not config[name] > 0:
            raise SettingsError(f"{name}={config[name]} must be positive; {cure}.")
    if not config.reward_scale > 0:
        raise SettingsError(f"reward_scale={config.reward_scale} must be positive.")
    for name in ("value_coef", "critic_warmup"):
        if config[name] < 0:
            raise SettingsError(f"{name}={config[name]} must not be negative.")
    for name in ("epochs", "shuffle_groups"):
        if config[name] < 1:
            raise SettingsError(f"{name}={config[name]} must be at least 1.")
    for name in ("discount", "gae_lambda"):
        if not 0 <= config[name] <= 1:
            raise SettingsError(f"{name}={config[name]} must lie in [0, 1].")
    for name in ("actor", "critic"):
        optimizers.check_cosine_restarts(
            name,
            peak=config[name].learning_rate,
            floor=config[name].min_learning_rate,
            cycle_steps=config[name].cycle_steps,
            warmup_steps=config[name].warmup_steps,
        )
        if config[name].weight_decay < 0:
            raise SettingsError(
                f"{name}: weight_decay={config[name].weight_decay} must not be "
                "negative."
            )
        norm = config[name].max_grad_norm
        if norm is not None and not norm > 0:
            raise SettingsError(
                f"{name}: max_grad_norm={norm} must be positive; use None to clip "
                "nothing."
            )


def make_configured(
    name: str,
    make: Callable[..., Algorithm],
    env: VecEnv,
    policy: ChainPolicy,
    config: ConfigDict,
) -> Algorithm:
    """Make an on-policy algorithm from a whole configuration.

    Args:
        make: (env, policy, critic, settings, *, num_chunks, reset_at_iteration) -> it.
        config: its sections `critic`, `rollout` and `algorithm.<name>` are read.
    """
    return make(
        env,
        policy,
        make_state_critic(config.critic),
        config.algorithm[name],
        num_chunks=config.rollout.num_chunks,
        reset_at_iteration=config.rollout.reset_at_iteration,
    )


def check_env(env: VecEnv, num_chunks: int, *, name: str) -> None:
    """Raise a SettingsError if algorithm `name` cannot collect chunks of `env`."""
    if len(env.action_shape) != 2:
        raise SettingsError(
            f"the environment takes actions of shape {env.action_shape}, but {name} "
            "needs chunks [Ta, Da]; wrap it in chunk_actions(env, Ta), with Ta = 1 for "
            "single actions."
        )
    if num_chunks < 1:
        raise SettingsError(f"num_chunks={num_chunks} must be at least 1.")


def check_batch(env: VecEnv, num_chunks: int, config: ConfigDict) -> None:
    """Raise a SettingsError if a minibatch of chunks does not fit into an iteration."""
    total = env.num_envs * num_chunks
    if not 1 <= config.batch_size <= total:
        raise SettingsError(
            f"batch_size={config.batch_size} must lie between 1 and the {total} chunks "
            f"of an iteration ({env.num_envs} environments x {num_chunks} chunks); "
            "lower it or collect more."
        )
    check_groups(
        config.shuffle_groups,
        {"environments": env.num_envs, "chunks of a minibatch": config.batch_size},
    )


def check_groups(num_groups: int, sizes: dict[str, int]) -> None:
    """Raise a SettingsError if `shuffle_groups` does not divide one of the sizes.

    Args:
        num_groups: the setting `shuffle_groups`.
        sizes: what is divided into groups -> how many there are.
    """
    for what, size in sizes.items():
        if size % num_groups:
            raise SettingsError(
                f"shuffle_groups={num_groups} must divide the {size} {what};"
                " change one of them."
            )


def check_devices(num_groups: int, num_devices: int, *, name: str) -> None:
    """Raise a SettingsError if devices cannot share the groups of algorithm `name`."""
    if num_groups % num_devices:
        raise SettingsError(
            f"algorithm.{name}.shuffle_groups={num_groups} must be a multiple "
            f"of the {num_devices} devices, each of which shuffles its own "
            "environments; "
            f"set it to {num_devices}, or use fewer devices."
        )

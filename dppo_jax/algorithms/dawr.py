"""Advantage-weighted regression of diffusion policies, DAWR (DPPO, arXiv 2409.00588).

AWR (Peng et al. 2019, arXiv 1910.00177) with a diffusion policy: a buffer of the latest
chunks, TD(lambda) targets of V over all of it, and a policy that clones the buffer's
chunks with the weight min(exp(beta A), max_weight) of their advantage, standardised in
the minibatch. An iteration computes all targets with the present V, updates V, computes
them again for the advantages, and updates the policy. Targets stop at terminations and
bootstrap after time limits from the observation before the reset; they run on from one
iteration to the next if episodes do.

`reference_quirks` restores what the reference (v0.8) does instead:

- "fixed_targets": a discount of 0.99, lambda of 0.95 and TD errors times 0.95, whatever
  the settings are;
- "broadcast_targets": V(s) of a row is compared with the targets of all rows of the
  minibatch, so that it learns their mean.

Its other departures, targets that run across resets and updates of V on the oldest part
of the buffer alone, are not reproduced.
"""

from typing import Any

from ml_collections import ConfigDict

from dppo_jax import replay
from dppo_jax.errors import SettingsError
from dppo_jax.learning import optimizer_settings, optimizers
from dppo_jax.learning.advantage_regression import QUIRKS, advantage_regression
from dppo_jax.learning.quirks import check_quirks
from dppo_jax.learning.regression_iteration import check_numbers, weighted_regression
from dppo_jax.networks.build_encoder import make_state_critic
from dppo_jax.policies import ChainPolicy
from dppo_jax.types import Algorithm, VecEnv


def default_config() -> ConfigDict:
    """The reference's settings for Hopper, Walker2d and HalfCheetah (v0.8)."""
    config = ConfigDict()
    config.discount = 0.99  # per chunk
    config.td_lambda = 0.95  # of the targets of V
    config.reward_scale = 0.01  # a factor of rewards
    config.beta = 10.0  # weight = exp(beta advantage)
    config.max_weight = 100.0  # bound of a weight
    config.capacity = 200_000  # chunks of all environments together
    config.batch_size = 1000  # chunks
    # Updates of the policy in an iteration: this times its new chunks / batch_size.
    config.replay_ratio = 64
    config.critic_ratio = 4  # updates of the policy for each of V
    config.critic_warmup = 0  # iterations in which only V learns
    for name, rate in (("actor", 1e-4), ("critic", 1e-3)):
        config[name] = optimizer_settings.default_config(rate)
    config.reference_quirks = ()  # names in QUIRKS
    return config


def make(
    env: VecEnv, policy: ChainPolicy, config: ConfigDict, data: Any = None
) -> Algorithm:
    """Make DAWR as `drwr.make` makes DRWR, with `algorithm.dawr` and `critic`.

    Raises:
        SettingsError: invalid or contradictory settings, which the message names.
    """
    del data
    settings, rollout = config.algorithm.dawr, config.rollout
    _check_config(settings)
    replay.check_capacity(settings.capacity, num_envs=env.num_envs)
    num_new = rollout.num_chunks * env.num_envs
    num_updates = int(num_new * settings.replay_ratio) // settings.batch_size
    if num_updates < settings.critic_ratio:
        raise SettingsError(
            f"algorithm.dawr.replay_ratio={settings.replay_ratio} and batch_size="
            f"{settings.batch_size} make {num_updates} updates of the policy for the "
            f"{num_new} chunks of an iteration, and V gets one for every critic_ratio="
            f"{settings.critic_ratio}; raise the first or lower one of the others."
        )
    trainer = optimizers.trainer(**settings.actor)
    learner = advantage_regression(
        policy,
        make_state_critic(config.critic),
        trainer,
        optimizers.trainer(**settings.critic),
        num_envs=env.num_envs,
        capacity=settings.capacity,
        batch_size=settings.batch_size,
        actor_updates=num_updates,
        critic_updates=num_updates // settings.critic_ratio,
        critic_warmup=settings.critic_warmup,
        discount=settings.discount,
        td_lambda=settings.td_lambda,
        reward_scale=settings.reward_scale,
        beta=settings.beta,
        max_weight=settings.max_weight,
        reset_at_iteration=rollout.reset_at_iteration,
        quirks=tuple(settings.reference_quirks),
    )
    return weighted_regression(
        env,
        policy,
        trainer,
        learner,
        num_chunks=rollout.num_chunks,
        reset_at_iteration=rollout.reset_at_iteration,
        name="dawr",
    )


def _check_config(config: ConfigDict) -> None:
    positive = ("reward_scale", "batch_size", "replay_ratio", "critic_ratio")
    check_numbers(config, name="dawr", positive=positive)
    check_quirks("dawr", config.reference_quirks, QUIRKS)
    if not 0 <= config.td_lambda <= 1:
        raise SettingsError(
            f"algorithm.dawr.td_lambda={config.td_lambda} must lie in [0, 1]."
        )
    if config.critic_warmup < 0:
        raise SettingsError(
            f"algorithm.dawr.critic_warmup={config.critic_warmup} must not be negative."
        )

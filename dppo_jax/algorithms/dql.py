"""DQL, also called Diffusion-QL: a diffusion policy regularised by cloning.

Wang et al. 2023 (arXiv 2208.06193). The actor's loss is that of cloning the stored
actions, minus eta times Q of chunks that it generates, with the gradient through the
whole denoising chain. Two critics learn from the target actor and the target critics.

`reference_quirks` reproduces what the reference implementation of DPPO does otherwise:

- "clone_generated": the actor clones the chunk that it has just generated, not the
  stored one, with a gradient also through that chunk;
- "online_target": targets are computed with the actor itself, not its target network.

The published code also acts by a draw among 50 chunks with probabilities that grow with
Q. Here the actor acts by itself, as in the reference.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dppo_jax.learning import diffusion_q_settings
from dppo_jax.learning.diffusion_q import (
    DiffusionQState,
    actor_update,
    sampled_target,
    whole,
)
from dppo_jax.learning.diffusion_q_losses import normalized_value_loss
from dppo_jax.learning.learner import Learner, row_keys
from dppo_jax.learning.quirks import check_quirks
from dppo_jax.networks import StateActionCritic
from dppo_jax.policies.chain import ChainPolicy
from dppo_jax.types import Array, PyTree, Transition, VecEnv

NAME = "dql"
QUIRKS = ("clone_generated", "online_target")


def default_config() -> ConfigDict:
    """The reference's settings for Gym."""
    config = diffusion_q_settings.default_config(
        updates_per_transition=0.016, target_rate=0.005
    )
    config.eta = 1.0  # weight of the critic in the actor's loss
    config.reference_quirks = ()  # names in QUIRKS
    return config


def make_learner(env: VecEnv, policy: ChainPolicy, config: ConfigDict) -> Learner:
    """Make the learner from a whole configuration."""
    settings = config.algorithm[NAME]
    quirks = settings.reference_quirks
    check_quirks(NAME, quirks, QUIRKS)
    diffusion_q_settings.check_pair(NAME, settings)
    diffusion_q_settings.check(NAME, settings, eta=(settings.eta >= 0, "at least 0"))
    parts = diffusion_q_settings.make_parts(env, config, NAME)
    has_target = "online_target" not in quirks
    goal = sampled_target(
        policy,
        parts.critic,
        discount=settings.discount,
        reward_scale=settings.reward_scale,
        use_target_actor=has_target,
    )
    loss = actor_loss(
        policy,
        parts.critic,
        eta=settings.eta,
        clone_generated="clone_generated" in quirks,
    )
    rate = settings.target_rate
    return parts.learner(
        policy,
        critic_updates=(parts.critic_update(goal, rate),),
        update_actor=actor_update(
            parts.actor_trainer, loss, target_rate=rate if has_target else None
        ),
        has_target_actor=has_target,
    )


make = diffusion_q_settings.maker(NAME, make_learner)


def actor_loss(
    policy: ChainPolicy,
    critic: StateActionCritic,
    *,
    eta: float,
    clone_generated: bool = False,
    swap: bool | None = None,
) -> Callable[[PyTree, DiffusionQState, Transition, Array], Array]:
    """The actor's loss: cloning, and eta times minus normalised Q (eq. 3).

    Args:
        clone_generated: see the quirk of this name.
        swap: whether the second critic is raised and the first one normalises. None: a
            coin decides in every update.
    """
    value_of: Callable[..., Any] = critic.apply

    def loss_of(
        params: PyTree, state: DiffusionQState, batch: Transition, key: Array
    ) -> Array:
        act_key, clone_key, coin_key = jax.random.split(key, 3)
        act_keys, clone_keys = (
            row_keys(key, len(batch.reward)) for key in (act_key, clone_key)
        )
        action, _ = policy.act(whole(params), act_keys, batch.obs)
        cloned = action if clone_generated else batch.action
        clone = policy.clone_loss(params, clone_keys, batch.obs, cloned).mean()
        value = value_of(state.critic.params, batch.obs, action)
        second = jax.random.bernoulli(coin_key) if swap is None else jnp.asarray(swap)
        return clone + eta * normalized_value_loss(value, second)

    return loss_of

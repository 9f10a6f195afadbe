"""QSM: Q-score matching (Psenka et al. 2024, arXiv 2312.11752).

The score of the diffusion policy, minus its predicted noise, is regressed on the
gradient of Q with respect to the action, times `gradient_scale`. No cloning term keeps
the policy near the demonstrations.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from dppo_jax.errors import SettingsError
from dppo_jax.learning import diffusion_q_settings
from dppo_jax.learning.diffusion_q import (
    DiffusionQState,
    actor_update,
    sampled_target,
)
from dppo_jax.learning.diffusion_q_losses import value_gradient
from dppo_jax.learning.learner import Learner, row_keys
from dppo_jax.networks import StateActionCritic
from dppo_jax.policies.chain import ChainPolicy
from dppo_jax.types import Array, PyTree, Transition, VecEnv

NAME = "qsm"
GRADIENTS = ("noisy", "clean")


def default_config() -> ConfigDict:
    """The reference's settings for Gym (from new networks, gradient_scale is 50)."""
    config = diffusion_q_settings.default_config(
        updates_per_transition=0.016, target_rate=0.005
    )
    config.gradient_scale = 10.0  # of the gradient of Q that the network learns
    # The action at which Q is differentiated: "noisy", the one whose noise the network
    # predicts (the paper's theory, its published code and the reference), or "clean",
    # the stored one (the paper's algorithm 1).
    config.gradient_at = "noisy"
    return config


def make_learner(env: VecEnv, policy: ChainPolicy, config: ConfigDict) -> Learner:
    """Make the learner from a whole configuration.

    Raises:
        SettingsError: an invalid setting, which the message names.
    """
    if not config.model.diffusion.predict_noise:
        raise SettingsError(
            "qsm trains the predicted noise, but this network predicts the clean action"
            "; set model.diffusion.predict_noise=True, and clone again."
        )
    settings = config.algorithm[NAME]
    known = f"one of {', '.join(GRADIENTS)}"
    diffusion_q_settings.check(
        NAME,
        settings,
        gradient_scale=(settings.gradient_scale > 0, "positive"),
        gradient_at=(settings.gradient_at in GRADIENTS, known),
    )
    parts = diffusion_q_settings.make_parts(env, config, NAME)
    goal = sampled_target(
        policy,
        parts.critic,
        discount=settings.discount,
        reward_scale=settings.reward_scale,
        use_target_actor=False,
    )
    loss = actor_loss(
        policy,
        parts.critic,
        gradient_scale=settings.gradient_scale,
        gradient_at=settings.gradient_at,
    )
    return parts.learner(
        policy,
        critic_updates=(parts.critic_update(goal, settings.target_rate),),
        update_actor=actor_update(parts.actor_trainer, loss),
    )


make = diffusion_q_settings.maker(NAME, make_learner)


def actor_loss(
    policy: ChainPolicy,
    critic: StateActionCritic,
    *,
    gradient_scale: float,
    gradient_at: str = "noisy",
) -> Callable[[PyTree, DiffusionQState, Transition, Array], Array]:
    """The actor's loss, the mean of |-noise(x, t) - gradient_scale dQ/da|^2.

    x is a stored action with the noise of a random step t, and dQ/da the gradient of
    the mean of the critics.

    Args:
        gradient_at: "noisy" differentiates Q at x, "clean" at the stored action.
    """
    value_of: Callable[..., Any] = critic.apply

    def loss_of(
        params: PyTree, state: DiffusionQState, batch: Transition, key: Array
    ) -> Array:
        def target_of(x: Array) -> Array:
            at = x if gradient_at == "noisy" else batch.action
            return -gradient_scale * value_gradient(
                lambda action: value_of(state.critic.params, batch.obs, action), at
            )

        keys = row_keys(key, len(batch.reward))
        return policy.clone_loss(
            params, keys, batch.obs, batch.action, target_of=target_of
        ).mean()

    return loss_of

"""DIPO: a diffusion policy that clones actions which Q has improved.

Yang et al. 2023 (arXiv 2305.13122). Beside every executed chunk the buffer stores an
improved one, which is the executed one at first. Whenever it is drawn, a few steps of
gradient ascent on the least of two critics improve it further, the result is stored,
and the actor clones it. The critics learn from the executed chunks, which earned the
rewards; the target actor samples the next action.

The actor clones the chunks of the critics' batch; the published code draws another
batch. `reference_quirks` reproduces what the reference implementation of DPPO does
otherwise:

- "learn_improved": the improved chunks replace the executed ones, so the critics credit
  them with the rewards of the executed ones;
- "act_by_target": the target network of the actor acts.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from dppo_jax.learning import diffusion_q_settings
from dppo_jax.learning.diffusion_q import (
    DiffusionQState,
    actor_update,
    clone_actor,
    sampled_target,
    whole,
)
from dppo_jax.learning.diffusion_q_losses import ascend
from dppo_jax.learning.learner import Learner
from dppo_jax.learning.quirks import check_quirks
from dppo_jax.networks import StateActionCritic
from dppo_jax.policies.chain import ChainPolicy
from dppo_jax.types import Array, Transition, VecEnv

NAME = "dipo"
QUIRKS = ("learn_improved", "act_by_target")


def default_config() -> ConfigDict:
    """The reference's settings for Gym."""
    config = diffusion_q_settings.default_config(
        updates_per_transition=0.064, target_rate=0.005
    )
    # Adam steps on the drawn actions; their gradient's norm over the whole batch is at
    # most max_norm_per_entry Ta Da.
    config.action = ConfigDict(
        dict(num_steps=10, learning_rate=1e-4, max_norm_per_entry=0.1)
    )
    config.reference_quirks = ()  # names in QUIRKS
    return config


def make_learner(env: VecEnv, policy: ChainPolicy, config: ConfigDict) -> Learner:
    """Make the learner from a whole configuration."""
    settings = config.algorithm[NAME]
    quirks, action = settings.reference_quirks, settings.action
    check_quirks(NAME, quirks, QUIRKS)
    diffusion_q_settings.check(
        f"{NAME}.action",
        action,
        num_steps=(action.num_steps >= 1, "at least 1"),
        learning_rate=(action.learning_rate >= 0, "at least 0"),
        max_norm_per_entry=(action.max_norm_per_entry > 0, "positive"),
    )
    parts = diffusion_q_settings.make_parts(env, config, NAME)
    goal = sampled_target(
        policy,
        parts.critic,
        discount=settings.discount,
        reward_scale=settings.reward_scale,
        use_target_actor=True,
    )
    chunk, action_dim = env.action_shape
    rate = settings.target_rate
    return parts.learner(
        policy,
        critic_updates=(parts.critic_update(goal, rate),),
        update_actor=actor_update(
            parts.actor_trainer, clone_actor(policy), target_rate=rate
        ),
        has_target_actor=True,
        params=target_params if "act_by_target" in quirks else None,
        improve=improver(
            parts.critic,
            num_steps=action.num_steps,
            learning_rate=action.learning_rate,
            max_norm=action.max_norm_per_entry * chunk * action_dim,
        ),
        learn_improved="learn_improved" in quirks,
    )


make = diffusion_q_settings.maker(NAME, make_learner)


def target_params(state: DiffusionQState) -> Any:
    """Parameters of the target actor."""
    return whole(state.target_actor)


def improver(
    critic: StateActionCritic, **settings: Any
) -> Callable[[DiffusionQState, Transition], Array]:
    """Make (state, batch) -> better actions than the batch's.

    Args:
        settings: keyword arguments of `diffusion_q_losses.ascend`.
    """
    value_of: Callable[..., Any] = critic.apply

    def improve(state: DiffusionQState, batch: Transition) -> Array:
        return ascend(
            lambda action: value_of(state.critic.params, batch.obs, action),
            batch.action,
            **settings,
        )

    return improve

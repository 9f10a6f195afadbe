"""IDQL: implicit Q-learning and a cloned diffusion policy (arXiv 2304.10573).

V(s) is an expectile of the target critics at the stored actions, Q(s, a) learns from V
of the next observation, and the diffusion policy clones the stored actions. It acts by
drawing several chunks and choosing one of them by the target critics and V.

The published code also averages the weights of the actor, and weighs candidates by the
same expectile that V has; here these are two settings, as in the reference
implementation of DPPO. The reference also acts on the last observation of an episode
that has ended; this module does not.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from dppo_jax.learning import diffusion_q_settings, q_losses
from dppo_jax.learning.diffusion_q import (
    DiffusionQState,
    Update,
    actor_update,
    clone_actor,
    whole,
)
from dppo_jax.learning.diffusion_q_losses import expectile_loss
from dppo_jax.learning.learner import Learner
from dppo_jax.learning.optimizers import Trainer
from dppo_jax.networks import StateActionCritic, StateCritic
from dppo_jax.networks.build_encoder import (
    make_state_action_critic,
    make_state_critic,
)
from dppo_jax.policies.candidates import (
    CandidateParams,
    CandidatePolicy,
    candidate_policy,
)
from dppo_jax.policies.chain import ChainPolicy
from dppo_jax.training import parallel
from dppo_jax.types import Array, Metrics, PyTree, Transition, VecEnv

NAME = "idql"


def default_config() -> ConfigDict:
    """The reference's settings for Gym; V and Q have the same learning rate."""
    config = diffusion_q_settings.default_config(
        updates_per_transition=0.128, target_rate=0.001
    )
    config.expectile = 0.8  # of V
    config.num_samples = 20  # candidates; 1: the policy alone acts
    # How a candidate is chosen while exploring: "argmax", "expectile", "boltzmann" or
    # "first", see `policies/candidates.py`.
    config.explore = "expectile"
    config.evaluate = "argmax"  # as explore, in a deterministic evaluation
    config.explore_expectile = 0.7  # of "expectile"
    config.temperature = 0.1  # of "boltzmann", in units of scaled rewards
    return config


def make_acting(
    policy: ChainPolicy, config: Mapping[str, Any], *, action_dim: int | None = None
) -> CandidatePolicy:
    """Make the policy that acts by the best of several candidates.

    Args:
        config: a whole configuration, or what `config.json` holds; its sections
            `algorithm.idql` and `critic` are read.
        action_dim: not used.

    Raises:
        SettingsError: as `candidate_policy`, or settings of no network.
    """
    del action_dim
    settings, critic = config["algorithm"][NAME], ConfigDict(config["critic"])
    return candidate_policy(
        policy,
        make_state_action_critic(critic, num_critics=settings["num_critics"]),
        make_state_critic(critic),
        num_samples=settings["num_samples"],
        explore=settings["explore"],
        evaluate=settings["evaluate"],
        expectile=settings["explore_expectile"],
        temperature=settings["temperature"],
    )


def make_learner(env: VecEnv, policy: ChainPolicy, config: ConfigDict) -> Learner:
    """Make the learner from a whole configuration."""
    settings = config.algorithm[NAME]
    parts = diffusion_q_settings.make_parts(env, config, NAME)
    fits = 0 < settings.expectile < 1
    diffusion_q_settings.check(NAME, settings, expectile=(fits, "between 0 and 1"))
    value = make_state_critic(config.critic)
    goal = value_target(
        value, discount=settings.discount, reward_scale=settings.reward_scale
    )
    return parts.learner(
        policy,
        critic_updates=(
            value_update(
                parts.critic, value, parts.critic_trainer, expectile=settings.expectile
            ),
            parts.critic_update(goal, settings.target_rate),
        ),
        update_actor=actor_update(parts.actor_trainer, clone_actor(policy)),
        value=(value, parts.critic_trainer),
        act=make_acting(policy, config).act,
        params=acting_params,
    )


make = diffusion_q_settings.maker(NAME, make_learner)


def acting_params(state: DiffusionQState) -> CandidateParams:
    """The actor, the target critics and V, which act together."""
    assert state.value is not None
    return CandidateParams(
        policy=whole(state.actor.params),
        critic=state.target,
        value=state.value.params,
    )


def value_update(
    critic: StateActionCritic, value: StateCritic, trainer: Trainer, *, expectile: float
) -> Update:
    """Update V(s) towards an expectile of the least target critic (eq. 3)."""
    value_of: Callable[..., Any] = value.apply
    score_of: Callable[..., Any] = critic.apply

    def update(
        state: DiffusionQState, batch: Transition, key: Array
    ) -> tuple[DiffusionQState, Metrics]:
        del key  # Nothing is drawn.
        assert state.value is not None
        goal = score_of(state.target, batch.obs, batch.action).min(0)

        def loss_of(params: PyTree) -> Array:
            return expectile_loss(
                value_of(params, batch.obs), goal, expectile=expectile
            )

        gradient = jax.value_and_grad(loss_of)
        loss, grads = parallel.mean(gradient(state.value.params))
        trained = trainer.descend(state.value, grads)
        return state._replace(value=trained), {"value_loss": loss}

    return update


def value_target(
    value: StateCritic, *, discount: float, reward_scale: float
) -> Callable[[DiffusionQState, Transition, Array], Array]:
    """Target of Q: reward + discount (1 - terminated) V(s') (eq. 4)."""
    value_of: Callable[..., Any] = value.apply

    def target_of(state: DiffusionQState, batch: Transition, key: Array) -> Array:
        del key  # Nothing is drawn.
        assert state.value is not None
        return q_losses.td_target(
            reward_scale * batch.reward,
            value_of(state.value.params, batch.next_obs),
            batch.terminated,
            discount=discount,
        )

    return target_of

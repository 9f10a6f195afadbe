"""OGPO: PPO over denoising chains, from off-policy critics (arXiv 2605.03065).

Critics learn Q(s, a) from a replay buffer, and PPO's clipped objective tunes all moves
of a chain by Q of its chunk, so an update of the policy needs no roll-out.

- Critics: an ensemble learns r + discount (1 - terminated) mean_m Q'_m(s', a') of its
  target network and one chunk a' of the target actor.
- Actor: see `learning/group_surrogate.py`. With `advantage = "consensus"` critics must
  agree on the sign (OGPO+CA); `clone_coef` and `clone_return` clone chunks of good
  episodes (OGPO+).
- Acting: exploring is by the best of `num_samples` chunks, by the least of `judges`
  critics; deterministic actions are those of the target actor alone.

Different from the paper: as in all off-policy algorithms here, a transition is a chunk
from one decision to the next, and `discount` applies to its summed rewards. The paper
stores single steps and learns from chunks at every offset. Moves keep the noise of the
policy; the paper has Euler steps with a standard deviation of 0.05 sqrt(1 - t) and
corrects their drift for it.

`reference_quirks` reproduces what the published code does otherwise:

- "actor_first": in a round the actor learns before the critics;
- "own_judges": each of the `num_samples` chunks is scored by critics of its own.

Not copied: it scores the last move before it clips the action, so ratios do not start
at one where a bound is hit; it uses the actor's learning rate for the critics.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dppo_jax.learning import diffusion_q_settings, returns_to_go
from dppo_jax.learning.diffusion_q import DiffusionQState, sampled_target, whole
from dppo_jax.learning.group_surrogate import (
    ADVANTAGES,
    spreads_evenly,
    surrogate_update,
)
from dppo_jax.learning.learner import Learner
from dppo_jax.learning.quirks import check_quirks
from dppo_jax.learning.soft_actor_critic import COMBINE
from dppo_jax.networks.build_encoder import make_state_action_critic
from dppo_jax.policies.best_of import BestOfParams, BestOfPolicy, best_of_policy
from dppo_jax.policies.chain import ChainPolicy
from dppo_jax.types import Algorithm, VecEnv

NAME = "ogpo"
QUIRKS = ("actor_first", "own_judges")
# Settings of `surrogate_update`.
_SURROGATE = ("group_size", "clip", "advantage", "clone_coef", "clone_return")


def default_config() -> ConfigDict:
    """The paper's settings for Square, with chunks of four actions."""
    # One update for each control step.
    config = diffusion_q_settings.default_config(
        updates_per_transition=4.0, target_rate=0.05
    )
    # The actor learns from the last batch of a round, the critics from each.
    config.replay.updates_per_round = 1
    config.replay.update(capacity=500_000, batch_size=256, min_fill=2500)
    config.discount = 0.96  # 0.99 for each control step
    config.reward_scale = 1.0  # a factor of rewards
    config.critic_warmup = 0
    config.num_critics = 10  # of the ensemble
    config.target_value = "mean"  # or "min", over all target critics
    config.actor.update(learning_rate=4.5e-5, max_grad_norm=1000.0)
    config.critic.update(learning_rate=3e-4, max_grad_norm=1000.0, weight_decay=1e-5)
    config.actor_target_rate = 0.005  # of the actor that samples
    config.actor_states = 256  # observations of a batch that the actor learns from
    config.group_size = 32  # chunks for each of them
    config.clip = 0.01  # of a ratio that is a mean over moves and entries
    config.advantage = "mean"  # or "consensus"
    config.clone_coef = 0.0  # 1.0 in OGPO+
    # Least return-to-go, undiscounted, of a chunk that is cloned; None: all are.
    config.clone_return = placeholder(float)
    config.num_samples = 8  # chunks of which exploring takes the best
    config.judges = 2  # critics, drawn at random, whose least value decides
    config.reference_quirks = ()  # names in QUIRKS
    return config


def make_acting(
    policy: ChainPolicy, config: Mapping[str, Any], *, action_dim: int | None = None
) -> BestOfPolicy:
    """Make the policy that explores by the best of several chunks, as in `idql`."""
    del action_dim
    settings = config["algorithm"][NAME]
    return best_of_policy(
        policy,
        make_state_action_critic(
            ConfigDict(config["critic"]), num_critics=settings["num_critics"]
        ),
        num_samples=settings["num_samples"],
        judges=settings["judges"],
        own_judges="own_judges" in settings["reference_quirks"],
    )


def make(
    env: VecEnv, policy: ChainPolicy, config: ConfigDict, data: Any = None
) -> Algorithm:
    """Make OGPO; see `diffusion_q_settings.make_algorithm`.

    The parameters of the Algorithm are `BestOfParams`.

    Args:
        policy: a diffusion policy or a flow.
        data: not used.
    """
    del data
    algorithm = diffusion_q_settings.make_algorithm(
        NAME, make_learner, env, policy, config
    )
    if config.algorithm[NAME].clone_return is None:
        return algorithm
    return returns_to_go.with_returns(
        algorithm,
        discount=1.0,
        num_new=config.rollout.num_chunks,
        max_steps=env.max_steps,
    )


def make_learner(env: VecEnv, policy: ChainPolicy, config: ConfigDict) -> Learner:
    """Make the learner from a whole configuration."""
    settings = config.algorithm[NAME]
    check_quirks(NAME, settings.reference_quirks, QUIRKS)
    _check_config(settings)
    parts = diffusion_q_settings.make_parts(
        env, config, NAME, kinds=("diffusion", "flow")
    )
    target = sampled_target(
        policy,
        parts.critic,
        discount=settings.discount,
        reward_scale=settings.reward_scale,
        use_target_actor=True,
        combine=lambda value: COMBINE[settings.target_value](value, axis=0),
    )
    learn_critics = parts.critic_update(target, settings.target_rate)
    learn_actor = surrogate_update(
        policy,
        parts.critic,
        parts.actor_trainer,
        num_states=settings.actor_states,
        target_rate=settings.actor_target_rate,
        **{name: settings[name] for name in _SURROGATE},
    )
    return parts.learner(
        policy,
        critic_updates=(learn_critics,),
        update_actor=learn_actor,
        has_target_actor=True,
        actor_first="actor_first" in settings.reference_quirks,
        act=make_acting(policy, config).act,
        params=acting_params,
    )


def acting_params(state: DiffusionQState) -> BestOfParams:
    """The target networks of actor and critics, which act together."""
    return BestOfParams(policy=whole(state.target_actor), critic=state.target)


def _check_config(settings: ConfigDict) -> None:
    rows, groups = settings.replay.batch_size, settings.replay.num_groups
    rate, least = settings.actor_target_rate, settings.clone_return
    diffusion_q_settings.check(
        NAME,
        settings,
        actor_states=(
            spreads_evenly(settings.actor_states, rows, groups),
            f"a divisor of replay.batch_size={rows}, with as many rows from every "
            "group of replay.num_groups",
        ),
        group_size=(settings.group_size >= 2, "at least 2"),
        clip=(settings.clip > 0, "positive"),
        actor_target_rate=(0 < rate <= 1, "between 0 and 1, not 0"),
        advantage=(settings.advantage in ADVANTAGES, f"one of {', '.join(ADVANTAGES)}"),
        target_value=(settings.target_value in COMBINE, f"one of {', '.join(COMBINE)}"),
        clone_coef=(settings.clone_coef >= 0, "at least 0"),
        clone_return=(
            least is None or settings.clone_coef > 0,
            "None without a clone_coef",
        ),
    )

"""Settings that IDQL, DQL, QSM, DIPO and OGPO share, and what is made of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dppo_jax.errors import SettingsError
from dppo_jax.learning import (
    off_policy,
    off_policy_settings,
    optimizer_settings,
    optimizers,
)
from dppo_jax.learning.diffusion_q import Update, critic_update, diffusion_q
from dppo_jax.learning.learner import Learner
from dppo_jax.learning.optimizers import Trainer
from dppo_jax.networks import StateActionCritic
from dppo_jax.networks.build_encoder import make_state_action_critic
from dppo_jax.policies.chain import ChainPolicy
from dppo_jax.types import Algorithm, Array, VecEnv


class Parts(NamedTuple):
    """critic: Q(s, a). critic_warmup: in rounds. action_shape: [Ta, Da]."""

    critic: StateActionCritic
    actor_trainer: Trainer
    critic_trainer: Trainer
    critic_warmup: int
    action_shape: tuple[int, ...]

    def learner(self, policy: ChainPolicy, **settings: Any) -> Learner:
        """`diffusion_q` of these parts; `settings` are its other arguments."""
        return diffusion_q(policy, **self._asdict(), **settings)

    def critic_update(
        self, target_of: Callable[..., Array], target_rate: float
    ) -> Update:
        """`diffusion_q.critic_update` of these parts."""
        return critic_update(
            self.critic, self.critic_trainer, target_of, target_rate=target_rate
        )


def default_config(*, updates_per_transition: float, target_rate: float) -> ConfigDict:
    """The reference's settings for Gym, the same for IDQL, DQL, QSM and DIPO.

    Args:
        updates_per_transition: the reference's replay ratio over its batch size.
        target_rate: see `optimizers.polyak`.
    """
    config = ConfigDict()
    config.replay = off_policy_settings.default_config()
    del config.replay.updates_per_round  # A round is one batch.
    config.replay.update(batch_size=1000, random_steps=0, min_fill=0)
    config.replay.updates_per_transition = updates_per_transition
    config.discount = 0.99  # per chunk
    config.reward_scale = 0.01  # a factor of rewards
    config.num_critics = 2  # of the ensemble
    config.target_rate = target_rate  # of the moving average of target networks
    # Iterations with updates in which only the critics learn.
    config.critic_warmup = 5
    for name, rate in (("actor", 1e-4), ("critic", 1e-3)):
        config[name] = optimizer_settings.default_config(rate)
    return config


def make_parts(
    env: VecEnv, config: ConfigDict, name: str, *, kinds: Sequence[str] = ("diffusion",)
) -> Parts:
    """Check the shared settings and make what they describe.

    Args:
        config: the whole configuration.
        name: of the algorithm.
        kinds: of policies that it can train, "diffusion" or "flow".

    Raises:
        SettingsError: an invalid setting, or a policy of another kind, or one that is
            not tuned in all of its denoising steps.
    """
    settings = config.algorithm[name]
    _check_model(config.model, name, kinds)
    check(
        name,
        settings,
        discount=(0 <= settings.discount <= 1, "between 0 and 1"),
        reward_scale=(settings.reward_scale > 0, "positive"),
        target_rate=(0 < settings.target_rate <= 1, "between 0 and 1, not 0"),
        critic_warmup=(settings.critic_warmup >= 0, "at least 0"),
    )
    transitions = env.num_envs * config.rollout.num_chunks
    updates = settings.replay.updates_per_transition * transitions
    rounds = round(updates / settings.replay.get("updates_per_round", 1))
    return Parts(
        critic=make_state_action_critic(
            config.critic, num_critics=settings.num_critics
        ),
        actor_trainer=optimizers.trainer(**settings.actor),
        critic_trainer=optimizers.trainer(**settings.critic),
        critic_warmup=settings.critic_warmup * rounds,
        action_shape=env.action_shape,
    )


def maker(
    name: str, make_learner: Callable[[VecEnv, ChainPolicy, ConfigDict], Learner]
) -> Callable[..., Algorithm]:
    """The function `make` of an algorithm that only its learner distinguishes.

    Returns:
        make(env, policy, config, data=None) -> Algorithm, see `make_algorithm`; `data`
        are not used.
    """

    def make(
        env: VecEnv, policy: ChainPolicy, config: ConfigDict, data: Any = None
    ) -> Algorithm:
        del data
        return make_algorithm(name, make_learner, env, policy, config)

    return make


def make_algorithm(
    name: str,
    make_learner: Callable[[VecEnv, ChainPolicy, ConfigDict], Learner],
    env: VecEnv,
    policy: ChainPolicy,
    config: ConfigDict,
) -> Algorithm:
    """Make one of these algorithms from a whole configuration.

    Args:
        name: of the algorithm.
        make_learner: (env, policy, config) -> its learner.
        env: its action is the policy's whole chunk, [Ta, Da].
        config: its sections `rollout`, `critic`, `model` and `algorithm.<name>` are
            read.

    Returns:
        An Algorithm; `init(key, params=None)` starts from given parameters of the
        policy, or from new ones.

    Raises:
        SettingsError: invalid or contradictory settings, which the message names.
    """
    if not isinstance(policy, ChainPolicy) or not policy.denoises:
        raise SettingsError(
            f"{name} needs a diffusion policy, not this one; set "
            "model.kind='diffusion'."
        )
    return off_policy.configured_off_policy(
        name, env, make_learner(env, policy, config), config
    )


def check(name: str, settings: ConfigDict, **rules: tuple[bool, str]) -> None:
    """Raise a SettingsError for the first setting that does not fit.

    Args:
        name: of the algorithm.
        rules: setting -> (whether it fits, what it must be).
    """
    for setting, (fits, wanted) in rules.items():
        if not fits:
            raise SettingsError(
                f"{name}.{setting}={settings[setting]!r} must be {wanted}."
            )


def check_pair(name: str, settings: ConfigDict) -> None:
    """Refuse a number of critics other than two."""
    check(name, settings, num_critics=(settings.num_critics == 2, "2"))


def _check_model(model: ConfigDict, name: str, kinds: Sequence[str]) -> None:
    if model.kind not in kinds:
        known = " or ".join(repr(kind) for kind in kinds)
        raise SettingsError(
            f"{name} needs a {' or '.join(kinds)} policy, not {model.kind!r}; set "
            f"model.kind={known}."
        )
    sampling = model.sampling
    steps = sampling.ddim_steps or model.diffusion.num_denoising_steps
    if model.kind == "flow":
        steps = sampling.flow_steps
    if sampling.num_tuned_steps != steps:
        raise SettingsError(
            f"model.sampling.num_tuned_steps={sampling.num_tuned_steps} freezes some "
            f"denoising steps, all of which {name} trains; set it to {steps}."
        )

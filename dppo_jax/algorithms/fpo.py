"""Flow policy optimisation: FPO (arXiv 2507.21053) and FPO++ (arXiv 2602.02481).

PPO on a flow without probabilities: the ratio of a chunk is made of its flow-matching
loss on N pairs (noise, time) before and after the updates, see
`learning/flow_losses.py`. The policy is that of cloning and of PPO on flows; it
explores by the noise that its chain starts from.

The published code updates the statistics of observations between the two losses (FPO)
and clamps only one of them (FPO++ for manipulation), so that ratios do not start at
one. It also loses the ends of episodes that lie inside a chunk, and treats a time limit
as a termination. This module does none of this.
"""

from typing import Any

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from dppo_jax.diffusion.flow import LEAST_STD, time_draw
from dppo_jax.errors import SettingsError
from dppo_jax.learning import flow_losses, on_policy_settings
from dppo_jax.learning.averages import average_actor
from dppo_jax.learning.flow_losses import flow_objective
from dppo_jax.learning.on_policy import OnPolicyState
from dppo_jax.learning.on_policy_chunks import make_chunk_algorithm
from dppo_jax.policies import ChainPolicy, PolicyParams
from dppo_jax.types import Algorithm, Array, PyTree, VecEnv

_CURE = "set model.kind='flow' and model.flow.cloning='flow'."
# Settings of `flow_objective`.
_OBJECTIVE = (
    *("num_pairs", "prediction", "reduction", "huber", "loss_max"),
    *("ratio", "log_ratio_max", "trust_region", "clip"),
)


def default_config() -> ConfigDict:
    """FPO++'s settings for locomotion, where this project has no default of its own.

    FPO is ratio="chunk", trust_region="clip", prediction="noise", times="discrete",
    num_pairs=8, and no bounds.
    """
    config = on_policy_settings.default_config()
    config.batch_size = 1000  # chunks, with all their pairs
    config.num_pairs = 16  # N
    # Of the pairs: "uniform", "logit-normal", or "discrete", which are k / num_times.
    config.times = "uniform"
    config.num_times = 10
    # The loss of a pair, see `flow_losses.pair_loss`; None: squares, and no bound.
    config.prediction = "velocity"  # or "noise"
    config.reduction = "root"  # or "mean", "chunk"
    config.huber = placeholder(float)  # where the loss becomes linear
    config.loss_max = FieldReference(20.0, field_type=float)  # bound of the loss
    config.ratio = "pair"  # or "chunk", of the mean over the pairs
    # Its bound; None: none.
    config.log_ratio_max = FieldReference(10.0, field_type=float)
    config.trust_region = "asymmetric"  # or "clip"
    config.clip = 0.05  # range of the ratio
    config.average_decay = 0.0  # of the actor, see `averages`; FPO++ has 0.95
    config.average_start = 500  # updates before averaging
    return config


def make_fpo(
    env: VecEnv,
    policy: ChainPolicy,
    critic: Any,
    config: ConfigDict,
    *,
    num_chunks: int,
    reset_at_iteration: bool = True,
) -> Algorithm:
    """Make FPO; the loss counts the executed actions of a chunk.

    Args:
        env: its action is a chunk, [Ta, Da].
        policy: a flow, all of whose steps are tuned.
        config: `default_config` with changes.
        critic, num_chunks, reset_at_iteration: as in `make_chunk_algorithm`.

    Returns:
        See `on_policy.on_policy`. A noise network is neither added nor trained.

    Raises:
        SettingsError: invalid or contradictory settings, which the message names.
    """
    if not isinstance(policy, ChainPolicy) or policy.velocity_error is None:
        raise SettingsError(f"fpo needs a flow that predicts velocities; {_CURE}")
    _check_config(config)
    on_policy_settings.check_env(env, num_chunks, name="FPO")
    on_policy_settings.check_batch(env, num_chunks, config)
    objective = flow_objective(
        policy,
        executed=env.action_shape[0],
        draw_time=time_draw(
            times=config.times, num_times=config.num_times, section="algorithm.fpo"
        ),
        **{name: config[name] for name in _OBJECTIVE},
    )
    algorithm = make_chunk_algorithm(
        env,
        policy,
        critic,
        config,
        objective,
        num_chunks=num_chunks,
        reset_at_iteration=reset_at_iteration,
        rows_each=config.num_pairs,
        name="fpo",
    )

    def init(
        key: Array,
        params: PolicyParams | None = None,
        critic_params: PyTree | None = None,
    ) -> OnPolicyState:
        if params is not None and params.num_active is not None:
            raise SettingsError(
                "the frozen network of this flow runs its first steps, because PPO "
                "lowered K' (tuned_steps_drop); fpo trains all steps, so start it from "
                "the cloned flow."
            )
        return algorithm.init(key, params, critic_params)

    whole = algorithm._replace(init=init)
    return average_actor(whole, config.average_decay, start=config.average_start)


def make(
    env: VecEnv, policy: ChainPolicy, config: ConfigDict, data: Any = None
) -> Algorithm:
    """Make FPO from a whole configuration.

    Args:
        config: its sections `algorithm.fpo`, `rollout` and `critic` are read, and of
            `model` how the flow is sampled.
        data: not used.

    Raises:
        SettingsError: as `make_fpo`, or a flow with a frozen part or a noise network.
    """
    del data
    _check_model(config.model)
    return on_policy_settings.make_configured("fpo", make_fpo, env, policy, config)


def _check_model(model: ConfigDict) -> None:
    sampling, noise = model.sampling, model.noise
    if model.kind != "flow":
        raise SettingsError(f"fpo needs a flow, not {model.kind!r}; {_CURE}")
    if sampling.num_tuned_steps != sampling.flow_steps:
        raise SettingsError(
            f"model.sampling.num_tuned_steps={sampling.num_tuned_steps} freezes a part "
            "of the flow, all of which fpo trains; set it to model.sampling.flow_steps="
            f"{sampling.flow_steps}."
        )
    if noise.std_min != noise.std_max:
        raise SettingsError(
            f"model.noise.std_min={noise.std_min} and std_max={noise.std_max} ask for "
            "a noise network, which fpo does not train; set both to the same value, to "
            f"{LEAST_STD} to explore by the start of the chain alone."
        )


def _check_config(config: ConfigDict) -> None:
    on_policy_settings.check_config(config)
    for name, known in flow_losses.CHOICES.items():
        if config[name] not in known:
            raise SettingsError(
                f"{name}={config[name]!r} is unknown; use one of {', '.join(known)}."
            )
    if config.num_pairs < 1:
        raise SettingsError(f"num_pairs={config.num_pairs} must be at least 1.")
    if not 0 < config.clip < 1:
        raise SettingsError(f"clip={config.clip} must lie between 0 and 1.")
    for name in ("huber", "loss_max", "log_ratio_max"):
        value = config[name]
        if value is not None and not value > 0:
            raise SettingsError(
                f"{name}={value} must be positive; None switches it off."
            )

"""PPO with the exact likelihood of a diffusion policy's actions (DPPO paper, App. B.5).

The paper (arXiv 2409.00588) compares DPPO with this algorithm: it does not use the
chain, and PPO's ratio is that of the densities of a chunk under the probability-flow
ODE, see
`diffusion/likelihood.py` and `learning/likelihood_losses.py`. Every evaluation of a
density takes about 2 K (1 + P) evaluations of the network, P being the probes.

Not copied from the reference (`model/diffusion/exact_likelihood.py`): its divergence is
that of the frozen network, so tuning changes it only by way of x. Probes are drawn anew
in every evaluation, so ratios do not start at one. The right-hand side of its equation
lacks the factor K between the rates of the schedule's steps and those of an equation on
[0, 1], so noise is added for a K-th of the time only. Log-densities are clamped to
[-5, 2].
"""

import importlib.util
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dppo_jax.errors import SettingsError
from dppo_jax.learning import on_policy_settings
from dppo_jax.learning.likelihood_losses import REDUCTIONS, likelihood_objective
from dppo_jax.learning.on_policy_chunks import make_chunk_algorithm
from dppo_jax.policies import ChainPolicy
from dppo_jax.types import Algorithm, VecEnv


def default_config() -> ConfigDict:
    """The reference's settings where one value holds for all its tasks."""
    config = on_policy_settings.default_config()
    config.batch_size = 1000  # chunks
    config.actor.update(learning_rate=1e-5, min_learning_rate=1e-5)
    config.num_probes = 2  # P, of the estimate of the divergence
    # Steps of the solver. None: one between any two denoising steps, K - 1. Multiples
    # of that number tell the network times of its training and some between them.
    config.ode_steps = placeholder(int)
    # Relative and absolute error of a step of diffrax's adaptive solver, for example
    # 1e-4 (pip install "dppo_jax[diffrax]"). None: Heun's method with `ode_steps`.
    config.ode_tolerance = placeholder(float)
    # "sum": the ratio is that of the densities. "mean": as in the reference but for a
    # factor of log 2, the log-ratio is divided by the entries of the chunk, Ta Da.
    config.reduction = "mean"
    config.clip = 0.01  # range of the ratio
    return config


def make_ppo_exact(
    env: VecEnv,
    policy: ChainPolicy,
    critic: Any,
    config: ConfigDict,
    *,
    num_chunks: int,
    reset_at_iteration: bool = True,
) -> Algorithm:
    """Make PPO whose ratio is that of the likelihoods of chunks.

    The likelihood is that of the whole chunk, also of actions that are not executed.
    Roll-outs sample the chain, whose marginals are those of the equation if the network
    is perfect.

    Args:
        env: its action is a chunk, [Ta, Da].
        policy: a diffusion policy with an `ode_log_prob`, any of its steps tuned.
        config: `default_config` with changes.
        critic, num_chunks, reset_at_iteration: as in `make_chunk_algorithm`.

    Returns:
        See `on_policy.on_policy`.

    Raises:
        SettingsError: invalid or contradictory settings, which the message names.
    """
    if not isinstance(policy, ChainPolicy) or policy.ode_log_prob is None:
        raise SettingsError(
            "ppo_exact needs a diffusion policy (model.kind='diffusion') with at least "
            "two denoising steps (model.diffusion.num_denoising_steps, or "
            "model.sampling.ddim_steps if it is set) and a bound of the clean action "
            "(model.diffusion.x0_clip, usually 1.0)."
        )
    _check_config(config)
    on_policy_settings.check_env(env, num_chunks, name="ppo_exact")
    on_policy_settings.check_batch(env, num_chunks, config)
    objective = likelihood_objective(
        policy,
        num_probes=config.num_probes,
        ode_steps=config.ode_steps,
        ode_tolerance=config.ode_tolerance,
        reduction=config.reduction,
        clip=config.clip,
    )
    return make_chunk_algorithm(
        env,
        policy,
        critic,
        config,
        objective,
        num_chunks=num_chunks,
        reset_at_iteration=reset_at_iteration,
        rows_each=1 + config.num_probes,
        name="ppo_exact",
    )


def make(
    env: VecEnv, policy: ChainPolicy, config: ConfigDict, data: Any = None
) -> Algorithm:
    """Make the algorithm from a whole configuration.

    Args:
        config: its sections `algorithm.ppo_exact`, `rollout` and `critic` are read.
        data: not used.

    Raises:
        SettingsError: as `make_ppo_exact`.
    """
    del data
    return on_policy_settings.make_configured(
        "ppo_exact", make_ppo_exact, env, policy, config
    )


def _check_config(config: ConfigDict) -> None:
    on_policy_settings.check_config(config)
    if config.reduction not in REDUCTIONS:
        raise SettingsError(
            f"reduction={config.reduction!r} is unknown; use one of "
            f"{', '.join(REDUCTIONS)}."
        )
    if config.num_probes < 1:
        raise SettingsError(f"num_probes={config.num_probes} must be at least 1.")
    if config.ode_steps is not None and config.ode_steps < 1:
        raise SettingsError(
            f"ode_steps={config.ode_steps} must be at least 1; use None for one step "
            "between any two denoising steps."
        )
    if config.ode_tolerance is not None:
        _check_tolerance(config)
    if not 0 < config.clip < 1:
        raise SettingsError(f"clip={config.clip} must lie between 0 and 1.")


def _check_tolerance(config: ConfigDict) -> None:
    if not config.ode_tolerance > 0:
        raise SettingsError(
            f"ode_tolerance={config.ode_tolerance} must be positive; use None for "
            "Heun's method with fixed steps."
        )
    if config.ode_steps is not None:
        raise SettingsError(
            f"ode_tolerance={config.ode_tolerance} lets the solver choose its steps, "
            f"and ode_steps={config.ode_steps} sets them; leave one of them None."
        )
    if importlib.util.find_spec("diffrax") is None:
        raise SettingsError(
            f"ode_tolerance={config.ode_tolerance} needs diffrax; install it with "
            'pip install "dppo_jax[diffrax]", or use None for Heun\'s method.'
        )

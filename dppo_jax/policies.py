"""Policies as chains of Gaussian moves; an ordinary Gaussian policy has one."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from dppo_jax import denoising, parallel
from dppo_jax.denoising import Diffusion, gaussian_log_prob
from dppo_jax.networks.gaussian import GaussianMLP
from dppo_jax.networks.mlp import DiffusionMLP
from dppo_jax.types import Array, Obs, Policy, PolicyParams, PyTree, Sample

# The reference's bounds of a log-probability, which keep ratios finite.
LOG_PROB_BOUNDS = (-5.0, 2.0)
# A deterministic Gaussian policy keeps this much noise, as the reference does.
_DETERMINISTIC_STD = 1e-4


def diffusion_policy(
    network: nn.Module,
    diffusion: Diffusion,
    *,
    chunk: int,
    action_dim: int,
    num_tuned_steps: int,
    min_std: float = 0.1,
    reward_horizon: int | None = None,
    log_prob_bounds: tuple[float, float] = LOG_PROB_BOUNDS,
) -> Policy:
    """A denoising chain whose last K' steps are a tunable policy (paper Sec. 4).

    Args:
        network: a module (x [B, Ta, Da], time [B] or [1], obs) -> like x, whose methods
            `encode(obs) -> condition` and `denoise(x, time, condition)` are its two
            halves; the first is evaluated once per chain.
        diffusion: schedules and bounds.
        chunk: Ta.
        num_tuned_steps: K'; the first K - K' steps use the frozen network.
        min_std: floor of the sampling standard deviation while exploring.
        reward_horizon: actions of the chunk that count in the log-probability;
            None counts all.
        log_prob_bounds: clamp of every entry before averaging.

    Returns:
        A Policy; `sample` averages log-probabilities over chunk and action axes,
        which keeps ratios near one whatever the size of the action.

    Raises:
        ValueError: K' outside [1, K], or a reward horizon outside [1, Ta].
    """
    schedule = diffusion.explore
    if not 1 <= num_tuned_steps <= schedule.num_steps:
        raise ValueError(
            f"num_tuned_steps={num_tuned_steps} must lie between 1 and the "
            f"schedule's {schedule.num_steps} denoising steps; change one of them."
        )
    horizon = chunk if reward_horizon is None else reward_horizon
    if not 1 <= horizon <= chunk:
        raise ValueError(
            f"reward_horizon={horizon} must lie between 1 and the chunk of {chunk}."
        )
    if min_std < 0:
        raise ValueError(f"min_std={min_std} must not be negative.")
    first_tuned = schedule.num_steps - num_tuned_steps
    apply: Callable[..., Any] = network.apply

    def encoded(params: PyTree, obs: Obs) -> _Encoded:
        return _Encoded(params, apply(params, obs, method="encode"))

    def denoise(network: _Encoded, x: Array, time: Array, obs: Obs) -> Array:
        return apply(network.params, x, time, network.condition, method="denoise")

    def reduce(log_prob: Array) -> Array:
        return jnp.clip(log_prob, *log_prob_bounds)[..., :horizon, :].mean((-2, -1))

    def init(key: Array, obs: Obs) -> PolicyParams:
        x = jnp.zeros((_batch(obs), chunk, action_dim))
        params = network.init(key, x, jnp.zeros(_batch(obs)), obs)
        return PolicyParams(base=params, tuned=params)

    def sample(
        params: PolicyParams,
        key: Array,
        obs: Obs,
        *,
        deterministic: bool = False,
        min_std: Array | float = min_std,
    ) -> Sample:
        base, tuned = encoded(params.base, obs), encoded(params.tuned, obs)

        def owner(step: Array) -> _Encoded:
            if params.num_active is None:
                return tuned
            owned = step >= schedule.num_steps - params.num_active
            return jax.tree.map(functools.partial(jnp.where, owned), tuned, base)

        # Drawn for the environments of all devices, so that these see the same noise
        # however many devices share them.
        batch = _batch(obs) * parallel.num_shards()
        shape = (schedule.num_steps + 1, batch, chunk, action_dim)
        draws = parallel.local_part(jax.random.normal(key, shape), axis=1)
        chain, log_prob = denoising.sample_chain(
            *(diffusion, denoise, base, owner),
            *(draws, obs),
            num_tuned=num_tuned_steps,
            min_std=min_std,
            deterministic=deterministic,
        )
        return Sample(chain, reduce(log_prob))

    def log_prob(
        params: PyTree, x: Array, next_x: Array, obs: Obs, step: Array
    ) -> Array:
        chex.assert_equal_shape([x, next_x])
        return reduce(
            denoising.step_log_prob(
                diffusion, apply, params, x, next_x, obs, first_tuned + step
            )
        )

    def chain_log_prob(params: PyTree, chain: Array, obs: Obs) -> Array:
        batch = chain.shape[0]

        def every_move(x: Array) -> Array:
            return jnp.repeat(x, num_tuned_steps, axis=0)

        network = encoded(params, obs)
        x, next_x = (
            x.reshape(-1, chunk, action_dim) for x in (chain[:, :-1], chain[:, 1:])
        )
        step = jnp.tile(first_tuned + jnp.arange(num_tuned_steps), batch)
        network = network._replace(
            condition=jax.tree.map(every_move, network.condition)
        )
        return reduce(
            denoising.step_log_prob(diffusion, denoise, network, x, next_x, obs, step)
        ).reshape(batch, num_tuned_steps)

    def clone_loss(params: PyTree, key: Array, obs: Obs, action: Array) -> Array:
        time_key, noise_key = jax.random.split(key)
        num_steps = diffusion.training.num_steps
        time = jax.random.randint(time_key, action.shape[:1], 0, num_steps)
        noise = jax.random.normal(noise_key, action.shape)
        return denoising.denoising_loss(
            diffusion, apply, params, action, obs, time, noise
        )

    def entropy(params: PyTree, obs: Obs) -> Array:
        # The moves have a fixed standard deviation, so this is a constant.
        std = jnp.maximum(schedule.std[first_tuned:], diffusion.min_log_prob_std)
        return _gaussian_entropy(std).mean()

    return Policy(
        *(init, sample, log_prob, chain_log_prob, clone_loss, entropy),
        *(num_tuned_steps, min_std),
    )


class _Encoded(NamedTuple):
    """A network and what it made of the observations, which a chain looks at once."""

    params: PyTree
    condition: PyTree


def gaussian_policy(
    network: nn.Module,
    *,
    chunk: int,
    action_dim: int,
    draw_clip: float = 3.0,
    log_prob_bounds: tuple[float, float] = LOG_PROB_BOUNDS,
) -> Policy:
    """A Gaussian over action chunks, as a chain of one move from zero.

    Args:
        network: `apply(params, obs) -> mean, std`, both [B, Ta, Da].
        draw_clip: bound of standard-normal draws; the density stays unclipped.
        log_prob_bounds: clamp of the averaged log-probability.
    """

    apply: Callable[..., Any] = network.apply

    def density(mean: Array, std: Array, action: Array) -> Array:
        return gaussian_log_prob(action, mean, std).mean((-2, -1))

    def reduce(log_prob: Array) -> Array:
        return jnp.clip(log_prob, *log_prob_bounds)

    def init(key: Array, obs: Obs) -> PolicyParams:
        params = network.init(key, obs)
        return PolicyParams(base=params, tuned=params)

    def sample(
        params: PolicyParams,
        key: Array,
        obs: Obs,
        *,
        deterministic: bool = False,
        min_std: Array | float = 0.0,
    ) -> Sample:
        mean, std = apply(params.tuned, obs)
        scale = _DETERMINISTIC_STD if deterministic else jnp.maximum(std, min_std)
        shape = (mean.shape[0] * parallel.num_shards(), *mean.shape[1:])
        draw = parallel.local_part(jax.random.normal(key, shape))
        action = mean + scale * jnp.clip(draw, -draw_clip, draw_clip)
        chain = jnp.stack([jnp.zeros_like(action), action], axis=1)
        return Sample(chain, reduce(density(mean, std, action))[:, None])

    def log_prob(
        params: PyTree, x: Array, next_x: Array, obs: Obs, step: Array
    ) -> Array:
        mean, std = apply(params, obs)
        return reduce(density(mean, std, next_x))

    def chain_log_prob(params: PyTree, chain: Array, obs: Obs) -> Array:
        mean, std = apply(params, obs)
        return reduce(density(mean, std, chain[:, 1]))[:, None]

    def clone_loss(params: PyTree, key: Array, obs: Obs, action: Array) -> Array:
        mean, std = apply(params, obs)
        return -density(mean, std, action).mean()

    def entropy(params: PyTree, obs: Obs) -> Array:
        return _gaussian_entropy(apply(params, obs)[1]).mean()

    del chunk, action_dim  # The network knows both; named for symmetry.
    return Policy(
        *(init, sample, log_prob, chain_log_prob, clone_loss, entropy), 1, 0.0
    )


def _gaussian_entropy(std: Array) -> Array:
    return 0.5 * jnp.log(2 * jnp.pi * jnp.e) + jnp.log(std)


def _batch(obs: Obs) -> int:
    return next(iter(obs.values())).shape[0]


def default_config() -> ConfigDict:
    """What a policy is made of; of a saved one only `sampling` may still change."""
    config = ConfigDict()
    config.kind = "diffusion"  # or "gaussian"
    config.chunk = 4  # Ta, predicted actions
    config.compute_dtype = "float32"  # or "bfloat16", on accelerators
    config.network = ConfigDict(
        dict(
            hidden_sizes=(512, 512, 512),
            activation="relu",
            layer_norm=False,
            residual=True,
        )
    )
    config.diffusion = ConfigDict(
        dict(
            num_steps=20,  # K of training, and of sampling unless by DDIM
            predict_noise=True,
            x0_clip=FieldReference(1.0, field_type=float),  # None: no bound
            time_dim=16,
            condition_sizes=placeholder(tuple),
        )
    )
    config.gaussian = ConfigDict(
        dict(
            fixed_std=FieldReference(0.1, field_type=float),  # None: predicted
            learn_fixed_std=False,
            std_min=0.01,
            std_max=1.0,
            tanh_output=True,
        )
    )
    # What a chain needs to act and to be scored; no weight depends on it.
    config.sampling = ConfigDict(
        dict(
            num_tuned_steps=10,  # K', the moves that fine-tuning may change
            min_std=0.1,  # exploration: floor of a chain's sampling std
            min_log_prob_std=0.1,  # stability: floor of the std in log-probs
            eta=1.0,
            draw_clip=3.0,
            noise_clip=placeholder(float),
            final_clip=placeholder(float),
            ddim_steps=placeholder(int),  # K of a DDIM chain; None: DDPM
        )
    )
    return config


def make_policy(
    config: ConfigDict,
    *,
    action_dim: int,
    reward_horizon: int | None = None,
) -> Policy:
    """The policy that `default_config` describes.

    Args:
        config: `default_config` with changes.
        action_dim: Da.
        reward_horizon: actions of a chunk that count in the log-probability; None: all.

    Raises:
        ValueError: settings that contradict each other, by name.
    """
    sampling = config.sampling
    network = dict(config.network) | dict(
        action_dim=action_dim, chunk=config.chunk, compute_dtype=config.compute_dtype
    )
    common = dict(chunk=config.chunk, action_dim=action_dim)
    if not sampling.draw_clip > 0:
        raise ValueError(f"draw_clip={sampling.draw_clip} must be positive.")
    if config.kind == "gaussian":
        module = GaussianMLP(**network, **config.gaussian)
        return gaussian_policy(module, **common, draw_clip=sampling.draw_clip)
    if config.kind != "diffusion":
        raise ValueError(
            f"model.kind={config.kind!r} is unknown; use 'diffusion' or 'gaussian'."
        )
    diffusion = dict(config.diffusion)
    embedding = {k: diffusion.pop(k) for k in ("time_dim", "condition_sizes")}
    return diffusion_policy(
        DiffusionMLP(**network, **embedding),
        denoising.make_diffusion(
            **diffusion,
            ddim_steps=sampling.ddim_steps,
            eta=sampling.eta,
            noise_clip=sampling.noise_clip,
            draw_clip=sampling.draw_clip,
            final_clip=sampling.final_clip,
            min_log_prob_std=sampling.min_log_prob_std,
        ),
        **common,
        num_tuned_steps=sampling.num_tuned_steps,
        min_std=sampling.min_std,
        reward_horizon=reward_horizon,
    )

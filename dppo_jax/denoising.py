"""The inner denoising MDP: one kernel over the arrays of a `Schedule`.

DDPM (Ho et al. 2020), DDIM (Song et al. 2021) and prediction of the noise or of
the clean action differ only in these arrays. With `out` the network's output at
step k,

    x0   = x0_from_x[k] x + x0_from_out[k] out            (then clipped)
    mean = mean_from_x0[k] x0 + mean_from_x[k] x
    x'   ~ N(mean, max(std[k], min_std)^2)

Step k = 0 is the noisiest one.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dppo_jax.noise_schedules import Schedule, ddim_schedule, ddpm_schedule
from dppo_jax.types import Array, Obs, PyTree, Sample

NetworkApply = Callable[[PyTree, Array, Array, Obs], Array]


class Diffusion(NamedTuple):
    """What turns a network into a distribution over chains.

    explore: schedule of roll-outs and of log-probabilities.
    deterministic: schedule of evaluation.
    training: schedule of the forward process in the behaviour-cloning loss; has
        more steps than the others where DDIM skips some.
    predict_noise: the network predicts the noise; otherwise the clean action.
    x0_clip: bound of the predicted clean action, or None.
    noise_clip: bound of the predicted noise in the mean (DDIM), or None.
    draw_clip: bound of standard-normal draws; the density stays unclipped.
    final_clip: bound of the action that leaves the chain, or None.
    min_log_prob_std: floor of the standard deviation in log-probabilities.
    """

    explore: Schedule
    deterministic: Schedule
    training: Schedule
    predict_noise: bool
    x0_clip: float | None
    noise_clip: float | None
    draw_clip: float
    final_clip: float | None
    min_log_prob_std: float


def make_diffusion(
    *,
    num_steps: int,
    ddim_steps: int | None = None,
    eta: float = 1.0,
    predict_noise: bool = True,
    x0_clip: float | None = 1.0,
    noise_clip: float | None = None,
    draw_clip: float = 3.0,
    final_clip: float | None = None,
    min_log_prob_std: float = 0.1,
) -> Diffusion:
    """The schedules and bounds of one diffusion policy.

    Args:
        num_steps: K, or the training steps where `ddim_steps` is given.
        ddim_steps: K of a sub-sampled DDIM chain; None samples by DDPM.
        eta: DDIM noise while exploring; evaluation always uses 0.

    Raises:
        ValueError: DDIM for a network that predicts the clean action, or a bound
            that is not positive.
    """
    if eta < 0:
        raise ValueError(f"eta={eta} must not be negative; 1 explores as DDPM does.")
    optional = ("x0_clip", "noise_clip", "final_clip")
    for name, bound in (
        ("x0_clip", x0_clip),
        ("noise_clip", noise_clip),
        ("draw_clip", draw_clip),
        ("final_clip", final_clip),
        ("min_log_prob_std", min_log_prob_std),
    ):
        if bound is not None and bound <= 0:
            cure = "; use None for no bound" if name in optional else ""
            raise ValueError(f"{name}={bound} must be positive{cure}.")
    training = ddpm_schedule(num_steps, predict_noise=predict_noise)
    if ddim_steps is None:
        explore = training
        deterministic = ddpm_schedule(
            num_steps, predict_noise=predict_noise, deterministic=True
        )
    else:
        if not predict_noise:
            raise ValueError("predict_noise=False needs DDPM; set ddim_steps=None.")
        explore, deterministic = (
            ddim_schedule(ddim_steps, num_training_steps=num_steps, eta=e)
            for e in (eta, 0.0)
        )
    return Diffusion(
        explore=explore,
        deterministic=deterministic,
        training=training,
        predict_noise=predict_noise,
        x0_clip=x0_clip,
        noise_clip=noise_clip,
        draw_clip=draw_clip,
        final_clip=final_clip,
        min_log_prob_std=min_log_prob_std,
    )


def denoise_mean(
    diffusion: Diffusion, schedule: Schedule, x: Array, out: Array, step: Array
) -> Array:
    """Mean of the next x, [B, Ta, Da], given the network's output `out`.

    `step` is a scalar or [B] index into the schedule.
    """
    chex.assert_equal_shape([x, out])
    s = jax.tree.map(lambda table: _column(table[step], x), schedule)
    x0 = s.x0_from_x * x + s.x0_from_out * out
    if diffusion.x0_clip is not None:
        x0 = jnp.clip(x0, -diffusion.x0_clip, diffusion.x0_clip)
    mean = s.mean_from_x0 * x0 + s.mean_from_x * x
    if diffusion.noise_clip is not None:
        noise = (x - s.signal * x0) / s.noise
        bound = diffusion.noise_clip
        mean += s.mean_from_noise * (jnp.clip(noise, -bound, bound) - noise)
    return mean


def gaussian_log_prob(value: Array, mean: Array, std: Array) -> Array:
    """Log-density of independent Gaussians, entry by entry."""
    z = (value - mean) / std
    return -0.5 * (z**2 + jnp.log(2 * jnp.pi)) - jnp.log(std)


def step_log_prob(
    diffusion: Diffusion,
    apply: NetworkApply,
    params: PyTree,
    x: Array,
    next_x: Array,
    obs: Obs,
    step: Array,
) -> Array:
    """Log-probability of the moves x -> next_x, entry by entry (paper eq. 4.3).

    Args:
        x, next_x: [B, Ta, Da].
        obs: leaves [B, ...].
        step: [B] index into the exploring schedule.

    Returns:
        [B, Ta, Da]; the standard deviation is floored at `min_log_prob_std`.
    """
    schedule = diffusion.explore
    out = apply(params, x, schedule.time[step], obs)
    mean = denoise_mean(diffusion, schedule, x, out, step)
    std = jnp.maximum(_column(schedule.std[step], x), diffusion.min_log_prob_std)
    return gaussian_log_prob(next_x, mean, std)


def denoise(
    diffusion: Diffusion,
    schedule: Schedule,
    apply: NetworkApply,
    params_of: Callable[[Array], PyTree],
    x: Array,
    draws: Array,
    obs: Obs,
    *,
    first: int,
    last: int,
    min_std: Array | float,
) -> tuple[Array, Array, Array]:
    """Run steps `first` ... `last - 1` of a chain on given standard-normal draws.

    Args:
        apply: (params, x [B, Ta, Da], time [1], obs) -> output like x.
        params_of: step -> network parameters that own it.
        x: [B, Ta, Da] before step `first`.
        draws: [K, B, Ta, Da]; entry k belongs to step k and is clipped here.
        min_std: floor of the sampling standard deviation.

    Returns:
        x after the last step, and, over the steps run, every x [S, B, Ta, Da] and
        its entry-wise log-probability [S, B, Ta, Da] with the std of `schedule` floored
        at `min_log_prob_std`.
    """
    num_steps = schedule.num_steps

    def move(x, inputs):
        step, draw = inputs
        # One time for all samples, so that it is embedded once.
        out = apply(params_of(step), x, schedule.time[step][None], obs)
        mean = denoise_mean(diffusion, schedule, x, out, step)
        std = schedule.std[step]
        draw = jnp.clip(draw, -diffusion.draw_clip, diffusion.draw_clip)
        x = mean + jnp.maximum(std, min_std) * draw
        if diffusion.final_clip is not None:
            bound = jnp.where(step == num_steps - 1, diffusion.final_clip, jnp.inf)
            x = jnp.clip(x, -bound, bound)
        log_prob_std = jnp.maximum(std, diffusion.min_log_prob_std)
        return x, (x, gaussian_log_prob(x, mean, log_prob_std))

    steps = jnp.arange(first, last)
    x, (xs, log_probs) = jax.lax.scan(move, x, (steps, draws[first:last]))
    return x, xs, log_probs


def denoising_loss(
    diffusion: Diffusion,
    apply: NetworkApply,
    params: PyTree,
    action: Array,
    obs: Obs,
    time: Array,
    noise: Array,
) -> Array:
    """Behaviour-cloning loss (Ho et al. 2020, eq. 14) on given times and noise.

    Args:
        action: [B, Ta, Da], normalised.
        time: [B] integers in [0, K), 0 the cleanest, as in the literature.
        noise: [B, Ta, Da] standard normal.

    Returns:
        Mean squared error of the predicted noise (or clean action).
    """
    chex.assert_equal_shape([action, noise])
    schedule = diffusion.training
    step = schedule.num_steps - 1 - time
    signal, level = (
        _column(table[step], action) for table in (schedule.signal, schedule.noise)
    )
    out = apply(params, signal * action + level * noise, schedule.time[step], obs)
    target = noise if diffusion.predict_noise else action
    return jnp.mean((out - target) ** 2)


def sample_chain(
    diffusion: Diffusion,
    apply: NetworkApply,
    base: PyTree,
    params_of: Callable[[Array], PyTree],
    draws: Array,
    obs: Obs,
    *,
    num_tuned: int,
    min_std: Array | float,
    deterministic: bool,
) -> Sample:
    """Denoise from x_K ~ N(0, I); keep the last `num_tuned` steps (paper eq. 4.2).

    Args:
        base: parameters of the early steps, which nothing else ever evaluates.
        params_of: step -> parameters of a tuned step.
        draws: [K + 1, B, Ta, Da] standard normal; entry 0 is x_K itself.
        min_std: floor of the sampling standard deviation; unused if deterministic.

    Returns:
        chain [B, K' + 1, Ta, Da] and entry-wise log-prob [B, K', Ta, Da].
    """
    schedule = diffusion.deterministic if deterministic else diffusion.explore
    floor = 0.0 if deterministic else min_std
    first_tuned = schedule.num_steps - num_tuned
    x, draws = draws[0], draws[1:]
    if first_tuned > 0:
        x, _, _ = denoise(
            diffusion,
            schedule,
            apply,
            lambda step: base,
            x,
            draws,
            obs,
            first=0,
            last=first_tuned,
            min_std=floor,
        )
    _, xs, log_probs = denoise(
        diffusion,
        schedule,
        apply,
        params_of,
        x,
        draws,
        obs,
        first=first_tuned,
        last=schedule.num_steps,
        min_std=floor,
    )
    chain = jnp.concatenate([x[None], xs])
    return Sample(jnp.moveaxis(chain, 0, 1), jnp.moveaxis(log_probs, 0, 1))


def _column(table: Array, like: Array) -> Array:
    """Give per-sample numbers [B] (or a scalar) the axes of `like` [B, ...]."""
    return table.reshape(table.shape + (1,) * (like.ndim - table.ndim))

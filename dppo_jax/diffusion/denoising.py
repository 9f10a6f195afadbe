"""Denoising as a chain of moves, and the loss of its behaviour cloning.

DDPM (Ho et al. 2020), DDIM (Song et al. 2021) and prediction of the noise or of
the clean action differ only in the arrays of a `Schedule`. If `out` is the network's
output at step k,

    x0   = x0_from_x[k] x + x0_from_out[k] out            (then clipped)
    mean = mean_from_x0[k] x0 + mean_from_x[k] x
    std  = std[k]
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dppo_jax.diffusion.chain import Chain, Move
from dppo_jax.diffusion.schedules import (
    Schedule,
    cosine_betas,
    ddim_schedule,
    ddpm_schedule,
    linear_betas,
)
from dppo_jax.errors import SettingsError
from dppo_jax.types import Array, PyTree

# Names of noise rates, see `make_diffusion`.
BETA_SCHEDULES = ("cosine", "linear")

# (params, x [B, Ta, Da], time [B] or [1], condition) -> output like x.
Denoise = Callable[[PyTree, Array, Array, PyTree], Array]


class Diffusion(NamedTuple):
    """Schedules and bounds that turn a network into a distribution over chains.

    explore: schedule of roll-outs and of log-probabilities.
    deterministic: schedule of evaluation.
    training: schedule of the forward process in the behaviour-cloning loss; with DDIM
        it has more steps than the other two.
    predict_noise: True if the network predicts the noise, False for the clean action.
    x0_clip: bound of the predicted clean action, or None.
    noise_clip: bound of the predicted noise in the mean (DDIM), or None.
    draw_clip: bound of standard-normal draws; log-probabilities ignore it.
    final_clip: bound of the action at the end of the chain, or None.
    min_log_prob_std: floor of the standard deviation in log-probabilities.
    rederive_noise: True if the noise in the mean (DDIM) is that of the clipped clean
        action, False if it is that of the network's output.
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
    rederive_noise: bool = True


def make_diffusion(
    *,
    num_denoising_steps: int,
    ddim_steps: int | None = None,
    eta: float = 1.0,
    predict_noise: bool = True,
    x0_clip: float | None = 1.0,
    noise_clip: float | None = None,
    draw_clip: float = 3.0,
    final_clip: float | None = None,
    min_log_prob_std: float = 0.1,
    beta_schedule: str = "cosine",
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    rederive_noise: bool = True,
    ddim_spacing: str = "leading",
) -> Diffusion:
    """Make the schedules and bounds of a diffusion policy.

    Args:
        num_denoising_steps: denoising steps in training; also K if `ddim_steps` is
            None.
        ddim_steps: K of a sub-sampled DDIM chain; None samples by DDPM.
        eta: DDIM noise while exploring; evaluation always uses 0.
        predict_noise, x0_clip, noise_clip, draw_clip, final_clip, min_log_prob_std: see
            `Diffusion`.
        beta_schedule: noise rates of training, "cosine" or "linear".
        beta_start, beta_end: bounds of the linear ones; the cosine has none.
        rederive_noise: as the reference does; diffusers' DDIMScheduler does not.
        ddim_spacing: see `ddim_schedule`.

    Raises:
        SettingsError: unknown or invalid noise rates, or a bound that is not positive.
    """
    if eta < 0:
        raise SettingsError(f"eta={eta} must not be negative; 1 explores as DDPM does.")
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
            raise SettingsError(f"{name}={bound} must be positive{cure}.")
    if beta_schedule not in BETA_SCHEDULES:
        raise SettingsError(
            f"beta_schedule={beta_schedule!r} is unknown; use one of "
            f"{', '.join(BETA_SCHEDULES)}."
        )
    if beta_schedule == "linear":
        betas = linear_betas(
            num_denoising_steps, beta_start=beta_start, beta_end=beta_end
        )
    else:
        betas = cosine_betas(num_denoising_steps)
    training = ddpm_schedule(
        num_denoising_steps, predict_noise=predict_noise, betas=betas
    )
    if ddim_steps is None:
        explore = training
        deterministic = ddpm_schedule(
            num_denoising_steps,
            predict_noise=predict_noise,
            betas=betas,
            deterministic=True,
        )
    else:
        explore, deterministic = (
            ddim_schedule(
                ddim_steps,
                num_training_steps=num_denoising_steps,
                eta=e,
                predict_noise=predict_noise,
                betas=betas,
                spacing=ddim_spacing,
            )
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
        rederive_noise=rederive_noise,
    )


def denoise_mean(
    diffusion: Diffusion, schedule: Schedule, x: Array, out: Array, step: Array
) -> Array:
    """Mean of the next x, [B, Ta, Da], given the network's output `out`.

    `step` is a scalar or [B] index into the schedule.
    """
    chex.assert_equal_shape([x, out])
    s = jax.tree.map(lambda table: _column(table[step], x), schedule)
    predicted = x0 = s.x0_from_x * x + s.x0_from_out * out
    if diffusion.x0_clip is not None:
        x0 = jnp.clip(x0, -diffusion.x0_clip, diffusion.x0_clip)
    mean = s.mean_from_x0 * x0 + s.mean_from_x * x
    if diffusion.noise_clip is None and diffusion.rederive_noise:
        return mean
    # The weights of x0 and x hold the noise that these two imply; replace it.
    implied = (x - s.signal * x0) / s.noise
    noise = implied
    if not diffusion.rederive_noise:
        noise = (x - s.signal * predicted) / s.noise
    if diffusion.noise_clip is not None:
        noise = jnp.clip(noise, -diffusion.noise_clip, diffusion.noise_clip)
    return mean + s.mean_from_noise * (noise - implied)


def diffusion_chain(diffusion: Diffusion, denoise: Denoise) -> Chain:
    """The chain of a diffusion policy, given its denoising network."""

    def move_of(schedule: Schedule) -> Move:
        def move(
            params: PyTree, x: Array, step: Array, condition: PyTree
        ) -> tuple[Array, Array]:
            # A time [1] for all rows is embedded only once.
            time = jnp.atleast_1d(schedule.time[step])
            out = denoise(params, x, time, condition)
            mean = denoise_mean(diffusion, schedule, x, out, step)
            return mean, _column(schedule.std[step], x)

        return move

    return Chain(
        explore=move_of(diffusion.explore),
        deterministic=move_of(diffusion.deterministic),
        num_denoising_steps=diffusion.explore.num_denoising_steps,
        draw_clip=diffusion.draw_clip,
        final_clip=diffusion.final_clip,
        min_log_prob_std=diffusion.min_log_prob_std,
    )


class Cloning(NamedTuple):
    """The inputs and targets of a chain's network in behaviour cloning.

    draw_time: key -> scalar position between noise and action, an integer step or a
        continuous time.
    corrupt: (action [B, Ta, Da], noise like it, time [B]) -> (x like it, the network's
        input time [B], the target of its output, like x).
    refine: (network, x, input time, target) -> the target to use instead, if that
        depends on the network, a function (x, input time) -> output. None: it does not.
    tells_length: True if all times are pairs, [2] and [B, 2], see `few_steps`.
    """

    draw_time: Callable[[Array], Array]
    corrupt: Callable[[Array, Array, Array], tuple[Array, Array, Array]]
    refine: Callable[..., Array] | None = None
    tells_length: bool = False


def diffusion_cloning(diffusion: Diffusion) -> Cloning:
    """Draw steps of the training schedule uniformly (Ho et al. 2020, algorithm 1).

    Times are integers in [0, K); 0 is the cleanest, as in the literature.
    """
    schedule = diffusion.training

    def draw_time(key: Array) -> Array:
        return jax.random.randint(key, (), 0, schedule.num_denoising_steps)

    def corrupt(action: Array, noise: Array, time: Array) -> tuple[Array, Array, Array]:
        step = schedule.num_denoising_steps - 1 - time
        signal, level = (
            _column(table[step], action) for table in (schedule.signal, schedule.noise)
        )
        target = noise if diffusion.predict_noise else action
        return signal * action + level * noise, schedule.time[step], target

    return Cloning(draw_time, corrupt)


def cloning_loss(
    cloning: Cloning,
    denoise: Denoise,
    params: PyTree,
    action: Array,
    condition: PyTree,
    time: Array,
    noise: Array,
    target_of: Callable[[Array], Array] | None = None,
) -> Array:
    """Behaviour-cloning loss (Ho et al. 2020, eq. 14) on given times and noise.

    Args:
        action: [B, Ta, Da], normalised.
        time: [B], as `cloning.draw_time` draws them.
        noise: [B, Ta, Da] standard normal.
        target_of: the network's input x [B, Ta, Da] -> the target of its output, like
            x, instead of the one that clones the action.

    Returns:
        [B] mean squared error of the network's output, over the entries of a row.
    """
    chex.assert_equal_shape([action, noise])
    x, told, target = cloning.corrupt(action, noise, time)
    out = denoise(params, x, told, condition)
    if cloning.refine is not None:
        # No gradient passes through targets.
        fixed = jax.lax.stop_gradient((params, condition))
        target = jax.lax.stop_gradient(
            cloning.refine(
                lambda x, told: denoise(fixed[0], x, told, fixed[1]), x, told, target
            )
        )
    if target_of is not None:
        target = target_of(x)
    return jnp.mean((out - target) ** 2, axis=(-2, -1))


def _column(table: Array, like: Array) -> Array:
    """Append axes to per-sample numbers [B] (or a scalar) to match `like` [B, ...]."""
    return table.reshape(table.shape + (1,) * (like.ndim - table.ndim))

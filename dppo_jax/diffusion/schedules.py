"""Noise schedules: arrays of coefficients, in which alone the samplers differ.

`alpha_bar` is the product of (1 - beta), called alpha in the DDIM paper.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dppo_jax.errors import SettingsError
from dppo_jax.types import Array

# Floors of the posterior variance in DDPM, and of std in deterministic DDPM and DDIM.
_MIN_VARIANCE = 1e-20
_MIN_DETERMINISTIC_STD = 1e-3
_MIN_DDIM_STD = 1e-10

# Which steps of training DDIM samples, see `ddim_schedule`.
SPACINGS = ("leading", "trailing")


class Schedule(NamedTuple):
    """[K] arrays of coefficients, the noisiest step first.

    time: the network's input time.
    signal, noise: the forward process x_k = signal[k] x0 + noise[k] epsilon.
    x0_from_x, x0_from_out: weights of x and the network's output in the clean action.
    mean_from_x0, mean_from_x: weights of the clean action and x in the mean of the next
        x.
    mean_from_noise: weight of the predicted noise in that mean (0 for DDPM); used only
        if the predicted noise is clipped, or not that of the clipped action.
    std: standard deviation of the next x.
    """

    time: Array
    signal: Array
    noise: Array
    x0_from_x: Array
    x0_from_out: Array
    mean_from_x0: Array
    mean_from_x: Array
    mean_from_noise: Array
    std: Array

    @property
    def num_denoising_steps(self) -> int:
        """K."""
        return self.time.shape[0]


def cosine_betas(num_denoising_steps: int, *, offset: float = 0.008) -> np.ndarray:
    """Noise rates beta of the cosine schedule (Nichol and Dhariwal 2021, eq. 17).

    alpha_bar(u) = cos^2((u + s) / (1 + s) * pi / 2) is sampled at
    num_denoising_steps + 1 points over u in [0, 1], as DPPO's reference code does; beta
    is capped at 0.999.

    Returns:
        [num_denoising_steps] float32, cleanest first.

    Raises:
        SettingsError: fewer than one step.
    """
    if num_denoising_steps < 1:
        raise SettingsError(
            f"num_denoising_steps={num_denoising_steps} must be at least 1."
        )
    u = np.linspace(0.0, 1.0, num_denoising_steps + 1)
    power = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.clip(1 - power[1:] / power[:-1], 0.0, 0.999).astype(np.float32)


def linear_betas(
    num_denoising_steps: int, *, beta_start: float, beta_end: float
) -> np.ndarray:
    """Noise rates beta that grow linearly (Ho et al. 2020, section 4).

    Returns:
        [num_denoising_steps] float64, cleanest first.

    Raises:
        SettingsError: fewer than one step, or rates that are not 0 < beta_start <=
            beta_end < 1.
    """
    if num_denoising_steps < 1:
        raise SettingsError(
            f"num_denoising_steps={num_denoising_steps} must be at least 1."
        )
    if not 0 < beta_start <= beta_end < 1:
        raise SettingsError(
            f"beta_start={beta_start} and beta_end={beta_end} must be rates 0 < "
            "beta_start <= beta_end < 1; for example 0.0001 and 0.02."
        )
    return np.linspace(beta_start, beta_end, num_denoising_steps)


def alpha_bars_of(betas: np.ndarray) -> np.ndarray:
    """Signal power alpha_bar, the running product of (1 - beta), of the same type."""
    # 1 - alpha_bar cancels at the clean end, so rounding matters. As in the reference,
    # whose checkpoints can be loaded, the product of float32 rates is in float64, and
    # the result float32. Rates that the reference does not have are float64.
    return np.cumprod(1 - betas, dtype=np.float64).astype(betas.dtype)


def ddpm_schedule(
    num_denoising_steps: int,
    *,
    predict_noise: bool = True,
    deterministic: bool = False,
    betas: np.ndarray | None = None,
) -> Schedule:
    """Ancestral sampling over every step (Ho et al. 2020, eqs. 6 and 7).

    Args:
        num_denoising_steps: K.
        predict_noise: whether the network predicts the noise or the clean action.
        deterministic: use the posterior std (at least 1e-3), but 0 in the last step, as
            the reference does in evaluation.
        betas: [K] noise rates, cleanest first; None: those of `cosine_betas`.
    """
    betas = cosine_betas(num_denoising_steps) if betas is None else betas
    alpha_bars = alpha_bars_of(betas)
    previous = np.concatenate([np.ones(1, np.float32), alpha_bars[:-1]])
    variance = betas * (1 - previous) / (1 - alpha_bars)
    std = np.sqrt(np.maximum(variance, _MIN_VARIANCE))
    if deterministic:
        std = np.maximum(std, _MIN_DETERMINISTIC_STD)
        std[0] = 0.0
    return _schedule(
        time=np.arange(num_denoising_steps),
        alpha_bars=alpha_bars,
        predict_noise=predict_noise,
        mean_from_x0=betas * np.sqrt(previous) / (1 - alpha_bars),
        mean_from_x=(1 - previous) * np.sqrt(1 - betas) / (1 - alpha_bars),
        mean_from_noise=np.zeros(num_denoising_steps),
        std=std,
    )


def ddim_schedule(
    num_denoising_steps: int,
    *,
    num_training_steps: int,
    eta: float,
    predict_noise: bool = True,
    betas: np.ndarray | None = None,
    spacing: str = "leading",
) -> Schedule:
    """DDIM sampling over some steps of training (Song et al. 2021, eqs. 12 and 16).

    Args:
        num_denoising_steps: K, number of sampled steps.
        num_training_steps: denoising steps of training.
        eta: 1 gives noise as in DDPM (exploration), 0 gives none (evaluation).
        predict_noise: whether the network predicts the noise or the clean action.
        betas: [num_training_steps] noise rates of training, cleanest first; None: those
            of `cosine_betas`.
        spacing: which steps of training are sampled (Lin et al. 2024, table 2).
            "leading" begins with the cleanest one, as the reference does, so chains of
            few steps start at a level at which a sample is no pure noise. "trailing"
            begins with the noisiest one.

    Raises:
        SettingsError: more steps in sampling than in training, or an unknown spacing.
    """
    if spacing not in SPACINGS:
        raise SettingsError(
            f"ddim_spacing={spacing!r} is unknown; use one of {', '.join(SPACINGS)}."
        )
    if not 1 <= num_denoising_steps <= num_training_steps:
        raise SettingsError(
            f"ddim_steps={num_denoising_steps} must lie between 1 and the "
            f"{num_training_steps} denoising steps of training."
        )
    time = np.arange(num_denoising_steps) * (num_training_steps // num_denoising_steps)
    if spacing == "trailing":
        share = np.arange(1, num_denoising_steps + 1) / num_denoising_steps
        time = np.round(share * num_training_steps).astype(int) - 1
    betas = cosine_betas(num_training_steps) if betas is None else betas
    alpha_bars = alpha_bars_of(betas)[time]
    previous = np.concatenate([np.ones(1, np.float32), alpha_bars[:-1]])
    std = eta * np.sqrt((1 - previous) / (1 - alpha_bars) * (1 - alpha_bars / previous))
    std = np.maximum(std, _MIN_DDIM_STD)
    mean_from_noise = np.sqrt(np.maximum(1 - previous - std**2, 0))
    return _schedule(
        time=time,
        alpha_bars=alpha_bars,
        predict_noise=predict_noise,
        mean_from_x0=np.sqrt(previous)
        - mean_from_noise * np.sqrt(alpha_bars) / np.sqrt(1 - alpha_bars),
        mean_from_x=mean_from_noise / np.sqrt(1 - alpha_bars),
        mean_from_noise=mean_from_noise,
        std=std if eta > 0 else np.zeros(num_denoising_steps),
    )


def _schedule(*, time, alpha_bars, predict_noise, **means) -> Schedule:
    """Add the arrays that follow from alpha_bar; reverse all to noisiest first."""
    if predict_noise:
        x0_from_x = np.sqrt(1 / alpha_bars)
        x0_from_out = -np.sqrt(1 / alpha_bars - 1)
    else:
        x0_from_x = np.zeros_like(alpha_bars)
        x0_from_out = np.ones_like(alpha_bars)
    tables = dict(
        time=time,
        signal=np.sqrt(alpha_bars),
        noise=np.sqrt(1 - alpha_bars),
        x0_from_x=x0_from_x,
        x0_from_out=x0_from_out,
        **means,
    )
    return Schedule(
        **{k: jnp.asarray(v[::-1].copy(), jnp.float32) for k, v in tables.items()}
    )

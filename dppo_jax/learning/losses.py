"""Losses of PPO, and the advantages and clip ranges they need, on plain arrays."""

from typing import NamedTuple

import chex
import jax.numpy as jnp

from dppo_jax.training import parallel
from dppo_jax.types import Array


class SurrogateInfo(NamedTuple):
    """Diagnostics of a clipped surrogate.

    approx_kl: mean of (ratio - 1) - log ratio, a low-variance KL estimate.
    clip_fraction: share of ratios outside the clip range.
    ratio: mean probability ratio.
    """

    approx_kl: Array
    clip_fraction: Array
    ratio: Array


def clipped_surrogate(
    log_prob: Array,
    old_log_prob: Array,
    advantage: Array,
    clip: Array,
    weight: Array | None = None,
) -> tuple[Array, SurrogateInfo]:
    """PPO's clipped objective, to be minimised (Schulman et al. 2017, eq. 7).

    Args:
        log_prob, old_log_prob, advantage: [B].
        clip: [B] or scalar; ratios are clipped to [1 - clip, 1 + clip].
        weight: [B] 1 for pairs to include and 0 for others; None: include all.
    """
    chex.assert_equal_shape([log_prob, old_log_prob, advantage])
    log_ratio = log_prob - old_log_prob
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
    loss = jnp.maximum(-advantage * ratio, -advantage * clipped)
    return weighted_mean(loss, weight), surrogate_info(log_ratio, clip, weight)


def surrogate_info(
    log_ratio: Array, clip: Array, weight: Array | None = None
) -> SurrogateInfo:
    """Diagnostics of ratios; arguments are as in `clipped_surrogate`."""
    ratio = jnp.exp(log_ratio)
    return SurrogateInfo(
        approx_kl=weighted_mean(ratio - 1 - log_ratio, weight),
        clip_fraction=weighted_mean(1.0 * (jnp.abs(ratio - 1) > clip), weight),
        ratio=weighted_mean(ratio, weight),
    )


def value_loss(
    value: Array,
    target: Array,
    old_value: Array | None = None,
    *,
    clip: float | None = None,
    weight: Array | None = None,
) -> Array:
    """Half the mean squared error; with `clip`, the larger of this and a clipped one.

    Args:
        value, target: [B].
        old_value: [B] prediction when the data were collected; `clip` needs it.
        clip: in the clipped error the prediction moves at most this far from
            `old_value`; None: no clipping.
        weight: [B]; None: equal weights.
    """
    chex.assert_equal_shape([value, target])
    error = (value - target) ** 2
    if clip is not None:
        assert old_value is not None, "clip needs the values at collection time"
        moved = old_value + jnp.clip(value - old_value, -clip, clip)
        error = jnp.maximum(error, (moved - target) ** 2)
    return 0.5 * weighted_mean(error, weight)


def normalize_advantage(
    advantage: Array, weight: Array | None = None, *, epsilon: float = 1e-8
) -> Array:
    """Scale [B] to zero mean and unit (unbiased) standard deviation."""
    local = None if weight is None else weight.sum()
    size = (
        advantage.size * parallel.num_shards()
        if local is None
        else parallel.total(local)
    )
    centred = advantage - parallel.mean(weighted_mean(advantage, weight), local)
    # The advantage of a single row becomes zero, not 0 / 0.
    variance = parallel.mean(weighted_mean(centred**2, weight), local)
    variance = variance * size / jnp.maximum(size - 1, 1)
    return centred / (jnp.sqrt(variance) + epsilon)


def clip_quantiles(
    advantage: Array, lower: float, upper: float, weight: Array | None = None
) -> Array:
    """Clip advantages [B] to their own quantiles; (0, 1) does not change them."""
    if lower <= 0 and upper >= 1:
        return advantage
    if weight is None:
        bounds = jnp.quantile(advantage, jnp.array([lower, upper]))
    else:
        counted = jnp.where(weight > 0, advantage, jnp.nan)
        bounds = jnp.nanquantile(counted, jnp.array([lower, upper]))
        # If all weights are zero, the quantiles are NaN, and NaN times zero is NaN.
        bounds = jnp.where(weight.sum() > 0, bounds, 0.0)
    return jnp.clip(advantage, bounds[0], bounds[1])


def denoising_discount(step: Array, *, num_tuned_steps: int, discount: float) -> Array:
    """discount^(moves left): noisier moves get smaller advantages (paper eq. 4.6).

    Args:
        step: [B] index of the tuned move, 0 the noisiest.
        num_tuned_steps: K'.
    """
    return discount ** (num_tuned_steps - 1 - step)


def clip_range(
    step: Array, *, num_tuned_steps: Array | int, base: float, top: float, rate: float
) -> Array:
    """Clip range that grows exponentially from `base` to `top` along the chain.

    base + (top - base) (e^(rate t) - 1) / (e^rate - 1) with t = step / (K' - 1)
    (paper Sec. 4.3). If K' = 1, the range is `top`; the reference computes 0/0.
    """
    last = jnp.maximum(num_tuned_steps - 1, 1)
    t = jnp.where(num_tuned_steps > 1, step / last, 1.0)
    return base + (top - base) * jnp.expm1(rate * t) / jnp.expm1(rate)


def weighted_mean(x: Array, weight: Array | None) -> Array:
    """Weighted mean over all entries; plain mean if `weight` is None."""
    if weight is None:
        return x.mean()
    return (x * weight).sum() / jnp.maximum(weight.sum(), 1.0)

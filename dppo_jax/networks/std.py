"""Standard deviations of Gaussian heads: fixed, learned or predicted.

A head has the attributes `fixed_std`, `learn_fixed_std`, `std_min` and `std_max`. The
three kinds, and the clamp of a log-variance, are those of the published DPPO code
(github irom-princeton/dppo, model/common).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.errors import SettingsError
from dppo_jax.types import Array


def check_std(head: Any) -> None:
    """Raise SettingsError if the attributes of a head contradict each other."""
    if not 0 < head.std_min <= head.std_max:
        raise SettingsError(
            f"std_min={head.std_min} and std_max={head.std_max} must satisfy "
            "0 < std_min <= std_max."
        )
    if head.fixed_std is not None and head.fixed_std <= 0:
        raise SettingsError(
            f"fixed_std={head.fixed_std} must be positive; use None to predict it."
        )
    if head.learn_fixed_std and head.fixed_std is None:
        raise SettingsError(
            "learn_fixed_std=True starts from fixed_std, which is None; set "
            "fixed_std, for example 0.1."
        )


def fixed_std(head: Any, size: int) -> Array:
    """[size] standard deviations that depend on no observation.

    Called while `head`, a module, is applied. If it learns them, they are
    parameters: log-variances under the name `fixed_log_variance`.
    """
    if not head.learn_fixed_std:
        return jnp.full((size,), head.fixed_std, jnp.float32)
    x = head.param(
        "fixed_log_variance",
        nn.initializers.constant(log_variance(head.fixed_std)),
        (size,),
    )
    return clamped_std(head, x)


def clamped_std(head: Any, x: Array) -> Array:
    """The standard deviation of a log-variance, within the bounds of a head."""
    low, high = log_variance(head.std_min), log_variance(head.std_max)
    # jnp.clip would halve the gradient at a bound. Here it is kept whole, so that a
    # standard deviation that starts at a bound leaves it at the intended speed.
    inside = (x >= low) & (x <= high)
    clipped = jax.lax.stop_gradient(jnp.clip(x, low, high))
    return jnp.exp(0.5 * jnp.where(inside, x, clipped))


def log_variance(std: float) -> np.ndarray:
    """The logarithm of the square, in float32."""
    return np.log(np.float32(std**2))

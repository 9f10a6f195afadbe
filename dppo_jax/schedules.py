"""Numbers that change over the iterations of a run."""

import math

import jax.numpy as jnp

from dppo_jax.types import Array


def cosine_restarts(
    step: Array, *, peak: float, floor: float, cycle_steps: int, warmup_steps: int
) -> Array:
    """Linear warm-up to `peak`, cosine decay to `floor`, then again, for ever.

    The schedule of DPPO's reference code (cosine annealing with warm restarts,
    Loshchilov and Hutter 2017, with a linear warm-up in every cycle). The very
    first value is the floor even without a warm-up, as there.

    Args:
        step: scheduler steps taken so far, from 0.
        cycle_steps: length of a cycle, warm-up included.
    """
    position = step % cycle_steps
    rise = position / max(warmup_steps, 1)
    decay = (position - warmup_steps) / (cycle_steps - warmup_steps)
    fall = 0.5 * (1 + jnp.cos(jnp.pi * decay))
    weight = jnp.where(position < warmup_steps, rise, fall)
    return floor + (peak - floor) * jnp.where(step == 0, 0.0, weight)


def check_cosine_restarts(
    name: str, *, peak: float, floor: float, cycle_steps: int, warmup_steps: int
) -> None:
    """Raise a ValueError for settings that `cosine_restarts` cannot follow."""
    if not 0 <= warmup_steps < cycle_steps:
        raise ValueError(
            f"{name}: warmup_steps={warmup_steps} must be at least 0 and less than "
            f"cycle_steps={cycle_steps}."
        )
    if not (math.isfinite(peak) and 0 <= floor <= peak):
        raise ValueError(
            f"{name}: 0 <= min_learning_rate <= learning_rate must hold, got "
            f"min_learning_rate={floor}, learning_rate={peak}."
        )


def linear_anneal(step: Array, *, start: float, end: float, steps: int) -> Array:
    """From `start` to `end` over `steps`, constant afterwards; 0 steps: `start`."""
    if steps == 0:
        return jnp.asarray(start, jnp.float32)
    return start + (end - start) * jnp.clip(step / steps, 0.0, 1.0)

"""AdamW that gets its learning rate at every update, rate schedules, Polyak average."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dppo_jax.errors import SettingsError
from dppo_jax.types import Array, PyTree


def adamw(
    *, weight_decay: float, max_grad_norm: float | None = None
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) without a learning rate; `update` applies it.

    Args:
        max_grad_norm: gradients with a larger global norm are first scaled down to it;
            None: no limit.
    """
    clip = [] if max_grad_norm is None else [optax.clip_by_global_norm(max_grad_norm)]
    return optax.chain(
        *clip, optax.scale_by_adam(), optax.add_decayed_weights(weight_decay)
    )


def update(
    optimizer: optax.GradientTransformation,
    grads: PyTree,
    state: Any,
    params: PyTree,
    learning_rate: Array | float,
    *,
    finite: Array | None = None,
) -> tuple[PyTree, Any]:
    """Make one update; return new parameters and optimizer state.

    If an entry of the gradients is NaN or infinite, the parameters stay as they are,
    and the optimizer gets gradients of zero. One update with a NaN would make all
    parameters NaN.

    Args:
        finite: [] whether to make the update, where that also depends on the gradients
            of another network; None: as `are_finite(grads)` says.
    """
    finite = are_finite(grads) if finite is None else finite
    # Selecting among gradients costs nothing, among parameters a tenth of the update.
    grads = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), grads)
    direction, state = optimizer.update(grads, state, params)
    rate = learning_rate * finite
    return jax.tree.map(lambda p, d: p - rate * d, params, direction), state


def are_finite(grads: PyTree) -> Array:
    """Whether all entries are finite, [] bool."""

    def total(x: Array) -> Array:
        # XLA's compiler for CPUs vectorises a product, but not a sum.
        return (jnp.ones(len(x), x.dtype) @ x.reshape(len(x), -1)).sum()

    leaves = jax.tree.leaves(grads)
    # A sum keeps every NaN and infinity.
    return jnp.isfinite(sum(total(x) if x.ndim > 1 else x.sum() for x in leaves))


def mean_of_made(values: Array, made: Array) -> Array:
    """Mean of a metric [U] over the updates that were made; 0 if all were skipped.

    Args:
        values: [U].
        made: [U] bool, `are_finite` of the gradients.
    """
    return jnp.where(made, values, 0.0).sum() / jnp.maximum(made.sum(), 1)


class Trained(NamedTuple):
    """Parameters and the state of their optimizer."""

    params: PyTree
    optimizer: Any


class Trainer(NamedTuple):
    """An optimizer.

    init: params -> Trained.
    descend: (Trained, gradients) -> Trained, one update.
    """

    init: Callable[[PyTree], Trained]
    descend: Callable[[Trained, PyTree], Trained]


def trainer(
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = None,
) -> Trainer:
    """AdamW with a constant learning rate.

    Raises:
        SettingsError: a learning rate or weight decay that is negative or not finite,
            or a bound of the gradient that is not positive.
    """
    for name, value in (
        ("learning_rate", learning_rate),
        ("weight_decay", weight_decay),
    ):
        if not 0 <= value < math.inf:
            raise SettingsError(f"{name}={value} must be finite and not negative.")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise SettingsError(
            f"max_grad_norm={max_grad_norm} must be positive; use None for no bound."
        )
    optimizer = adamw(weight_decay=weight_decay, max_grad_norm=max_grad_norm)

    def init(params: PyTree) -> Trained:
        return Trained(params, optimizer.init(params))

    def descend(trained: Trained, grads: PyTree) -> Trained:
        params, state = update(
            optimizer, grads, trained.optimizer, trained.params, learning_rate
        )
        return Trained(params, state)

    return Trainer(init, descend)


def polyak(target: PyTree, online: PyTree, rate: float) -> PyTree:
    """Move a target network towards the online one: (1 - rate) target + rate online.

    Lillicrap et al. (2016, arXiv 1509.02971), where the rate is called tau.
    """
    return jax.tree.map(lambda t, o: t + rate * (o - t), target, online)


def cosine_restarts(
    step: Array, *, peak: float, floor: float, cycle_steps: int, warmup_steps: int
) -> Array:
    """Repeat a linear warm-up to `peak` and a cosine decay to `floor`.

    This is the schedule of DPPO's reference code: cosine annealing with warm restarts
    (Loshchilov and Hutter 2017) and a linear warm-up in every cycle. As there, the
    value at step 0 is the floor even without a warm-up.

    Args:
        step: number of scheduler steps taken so far.
        cycle_steps: length of a cycle, warm-up included.
        warmup_steps: length of the warm-up in every cycle.
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
    """Raise a SettingsError for invalid settings of `cosine_restarts`."""
    if not 0 <= warmup_steps < cycle_steps:
        raise SettingsError(
            f"{name}: warmup_steps={warmup_steps} must be at least 0 and less than "
            f"cycle_steps={cycle_steps}."
        )
    if not (math.isfinite(peak) and 0 <= floor <= peak):
        raise SettingsError(
            f"{name}: 0 <= min_learning_rate <= learning_rate must hold, got "
            f"min_learning_rate={floor}, learning_rate={peak}."
        )


def linear_anneal(step: Array, *, start: float, end: float, steps: int) -> Array:
    """Interpolate from `start` to `end` over `steps`, then stay; 0 steps: `start`."""
    if steps == 0:
        return jnp.asarray(start, jnp.float32)
    return start + (end - start) * jnp.clip(step / steps, 0.0, 1.0)

"""AdamW with the learning rate handed in at every update, and target networks."""

from typing import Any

import jax
import optax

from dppo_jax.types import Array, PyTree


def adamw(
    *, weight_decay: float, max_grad_norm: float | None = None
) -> optax.GradientTransformation:
    """Decoupled AdamW (Loshchilov and Hutter 2019) without its learning rate.

    Args:
        max_grad_norm: global norm that gradients are scaled down to first.
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
) -> tuple[PyTree, Any]:
    """One step of `learning_rate`: new parameters and optimizer state."""
    direction, state = optimizer.update(grads, state, params)
    return jax.tree.map(lambda p, d: p - learning_rate * d, params, direction), state


def polyak(target: PyTree, online: PyTree, rate: float) -> PyTree:
    """Move a target network towards the online one: (1 - rate) target + rate online.

    Lillicrap et al. (2016, arXiv 1509.02971), where the rate is called tau.
    """
    return jax.tree.map(lambda t, o: t + rate * (o - t), target, online)

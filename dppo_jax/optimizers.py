"""AdamW with the learning rate handed in at every update, and target networks."""

from collections.abc import Callable
from typing import Any, NamedTuple

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


class Trained(NamedTuple):
    """Parameters and the state of their optimizer."""

    params: PyTree
    optimizer: Any


class Trainer(NamedTuple):
    """init: params -> Trained.  descend: (Trained, gradients) -> Trained, one step."""

    init: Callable[[PyTree], Trained]
    descend: Callable[[Trained, PyTree], Trained]


def trainer(
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = None,
) -> Trainer:
    """AdamW at one learning rate throughout.

    Raises:
        ValueError: a negative learning rate.
    """
    if learning_rate < 0:
        raise ValueError(f"learning_rate={learning_rate} must not be negative.")
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

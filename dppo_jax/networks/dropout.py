"""Dropout that is active only where a caller passes keys for it.

A network acts and is scored without dropout, because a log-probability that depends on
which units were dropped makes ratios differ from one before the first update. Cloning
passes keys. The published DPPO code drops units while fine-tuning as well.
"""

from typing import Any

import flax.linen as nn
import jax

from dppo_jax.errors import SettingsError
from dppo_jax.types import Array, Obs, PyTree

_KEYS = "dropout"  # of the random keys of Flax


def check_rate(option: str, rate: float) -> None:
    """Refuse a share of dropped units outside of [0, 1)."""
    if not 0 <= rate < 1:
        raise SettingsError(f"{option}={rate} must lie in [0, 1); 0 drops nothing.")


def drop(module: nn.Module, rate: float, x: Array) -> Array:
    """x with a share `rate` of its entries zero, if `module` has keys for dropout."""
    return nn.Dropout(rate)(x, deterministic=not module.has_rng(_KEYS))


def apply_with_dropout(network: Any, params: PyTree, keys: Array, obs: Obs) -> PyTree:
    """What a network makes of observations while it is cloned.

    Args:
        network: with dropout if its attribute `has_dropout` is true; other networks
            are applied as ever.
        keys: [B], each decides which units its own row drops, so that a row does not
            depend on the others.

    Returns:
        Leaves [B, ...].
    """
    if not getattr(network, "has_dropout", False):
        return network.apply(params, obs)

    def one(key: Array, row: Obs) -> PyTree:
        row = jax.tree.map(lambda x: x[None], row)
        outputs = network.apply(params, row, rngs={_KEYS: key})
        return jax.tree.map(lambda x: x[0], outputs)

    return jax.vmap(one)(keys, obs)

"""Train many seeds of an Algorithm in one program, with one more leading axis."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dppo_jax.errors import SettingsError
from dppo_jax.types import Algorithm, Array, PyTree


def many(
    algorithm: Algorithm, num_seeds: int, *, vectorize: bool | None = None
) -> Algorithm:
    """Make an Algorithm that trains `num_seeds` independent seeds at once.

    Args:
        vectorize: True: all seeds in every operation (`vmap`). False: one seed after
            the other inside the program (`lax.map`). None: `vmap` on accelerators,
            where the small matrices of one seed leave most of the device idle, and
            `lax.map` on CPU. On CPU `vmap` is slower: batches of small matrix products
            are not faster, and both sides of a branch are computed, so every step also
            resets all environments. With `lax.map` every seed equals the run of that
            seed bit for bit, with `vmap` up to the order of sums.

    Returns:
        An Algorithm. `init(keys [N], *args)` starts every seed from its own key and
        the same further arguments. All leaves of the state and all metrics have a
        leading axis [N]; `params` and `act` are those of one seed.

    Raises:
        SettingsError: fewer than one seed, or another number of keys.
    """
    if num_seeds < 1:
        raise SettingsError(f"num_seeds={num_seeds} must be at least 1.")
    if vectorize is None:
        vectorize = jax.default_backend() != "cpu"

    def init(keys: Array, *args: Any) -> Any:
        if keys.shape[0] != num_seeds:
            raise SettingsError(f"{keys.shape[0]} keys for num_seeds={num_seeds}.")
        # Initialise one after the other, so that every seed equals a single run.
        return stack([algorithm.init(key, *args) for key in keys])

    def of_all(function: Callable[..., tuple]) -> Callable[..., tuple]:
        if vectorize:
            return jax.vmap(function)
        return lambda *args: jax.lax.map(lambda args: function(*args), args)

    return algorithm._replace(
        init=init,
        step=of_all(algorithm.step),
        split=None,
        phases=tuple(map(of_all, algorithm.phases)),
    )


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Join the leaves of one tree per seed along a new leading axis [N]."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@functools.partial(jax.jit, static_argnums=1)
def split(tree: PyTree, num_seeds: int) -> list[PyTree]:
    """Undo `stack`; the leaves are copies."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(num_seeds)]


@jax.jit
def copy(tree: PyTree) -> PyTree:
    """Copy a tree, so that no leaf shares a buffer."""
    return jax.tree.map(lambda leaf: leaf.copy(), tree)

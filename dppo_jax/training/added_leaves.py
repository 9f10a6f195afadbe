"""Leaves of states that were added later, which older checkpoints lack.

They are entries of dictionaries, so an older state has all others under the same names.
"""

from collections.abc import Mapping
from typing import Any

import jax

from dppo_jax.training.trees import named_leaves
from dppo_jax.types import PyTree

# The space of MuJoCo Warp that was too small, `envs.physics.state.FULL`; 0 of a new
# state, which says that nothing is known to have been left out.
_ADDED = "full"


def is_added(name: str) -> bool:
    """Whether a leaf, named as by `named_leaves`, was added later."""
    return _ADDED in name.split("/")


def are_lacking(saved: PyTree, like: PyTree) -> bool:
    """Whether a saved state lacks leaves of `like`, all of which were added later."""
    missing = named_leaves(like).keys() - named_leaves(saved).keys()
    return bool(missing) and all(map(is_added, missing))


def without_added(tree: PyTree) -> PyTree:
    """A state as it was before."""

    def older(x: Any) -> Any:
        if not _has_added(x):
            return x
        return {name: value for name, value in x.items() if name != _ADDED}

    return jax.tree.map(older, tree, is_leaf=_has_added)


def with_added(tree: PyTree, like: PyTree) -> PyTree:
    """An older state with the leaves that `like` has besides."""

    def newer(new: Any, old: Any) -> Any:
        return {**old, _ADDED: new[_ADDED]} if _has_added(new) else old

    return jax.tree.map(newer, like, tree, is_leaf=_has_added)


def _has_added(x: Any) -> bool:
    return isinstance(x, Mapping) and _ADDED in x

"""Convert pytrees for files and back, and compare their names and shapes."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dppo_jax.errors import SettingsError
from dppo_jax.types import PyTree


def with_types(saved: PyTree, like: Any) -> PyTree:
    """Convert nested dictionaries to the types of `like`, such as named tuples.

    A field that is None in `like` may be present or missing.
    """
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        fields = {k: with_types(saved[k], getattr(like, k)) for k in saved}
        return type(like)(**fields)
    if isinstance(like, Mapping):
        return {k: with_types(saved[k], like[k]) for k in saved}
    if isinstance(like, (tuple, list)):
        return type(like)(with_types(s, x) for s, x in zip(saved, like, strict=True))
    return saved


def optional_as(like: PyTree, saved: PyTree) -> PyTree:
    """Return `like`, with parts that are None taken from `saved`.

    Such a part may be present or missing, for example `PolicyParams.num_active`. Other
    differences remain; `check_matches` raises an error for them.
    """
    if like is None:
        return saved
    fields = getattr(like, "_fields", None)
    if fields is not None:
        parts = (optional_as(getattr(like, k), _part(saved, k)) for k in fields)
        return type(like)(*parts)
    if isinstance(like, Mapping):
        return {k: optional_as(x, _part(saved, k)) for k, x in like.items()}
    return like


def _part(tree: PyTree, name: str) -> PyTree:
    """Part of a mapping or a named tuple by name; None if it is missing."""
    return tree.get(name) if isinstance(tree, Mapping) else getattr(tree, name, None)


def check_matches(params: PyTree, expected: PyTree, *, what: str, cure: str) -> None:
    """Check that parameters have the names and shapes of `expected`.

    Args:
        what: what `params` are, for the message.
        cure: what the user can do, for the message.

    Raises:
        SettingsError: they differ; the message names the first difference.
    """
    found, wanted = _shapes(params), _shapes(expected)
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise SettingsError(
                f"{what} does not match the configured one: {name} has shape "
                f"{found.get(name, 'none')}, expected {wanted.get(name, 'none')}; "
                f"{cure}"
            )


def plain(tree: PyTree) -> PyTree:
    """Convert to dictionaries and lists of NumPy arrays; omit fields that are None."""
    if isinstance(tree, tuple) and hasattr(tree, "_asdict"):
        tree = tree._asdict()
    if isinstance(tree, Mapping):
        return {name: plain(x) for name, x in tree.items() if x is not None}
    if isinstance(tree, (tuple, list)):
        return [plain(x) for x in tree]
    return np.asarray(tree)


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves by the names on their paths, such as "env/physics/qpos", in order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(_name(key) for key in path): leaf for path, leaf in leaves}


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(tree).items()}


def _name(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def storable(tree: PyTree) -> PyTree:
    """Convert what files cannot hold: keys to integers, an empty array to one zero."""

    def store(leaf: Any) -> Any:
        if _is_key(leaf):
            return jax.random.key_data(leaf)
        return leaf if leaf.size else np.zeros(1, leaf.dtype)

    return jax.tree.map(store, tree)


def from_storable(tree: PyTree, like: PyTree) -> PyTree:
    """Undo `storable`; take empty arrays from `like`."""

    def restore(leaf: Any, like: Any) -> Any:
        if _is_key(like):
            return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like))
        return leaf if like.size else like

    return jax.tree.map(restore, tree, like)

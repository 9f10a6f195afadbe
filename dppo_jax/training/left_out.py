"""Parts of a training state that checkpoints may lack, such as a replay buffer.

`Algorithm.dispensable` names them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from dppo_jax.types import PyTree


def leave_out(state: Any, names: Sequence[str]) -> tuple[Any, dict[str, int]]:
    """A state without the fields `names`, and their bytes in memory."""
    sizes = {name: num_bytes(getattr(state, name)) for name in names}
    return state._replace(**dict.fromkeys(names)), sizes


def lacking(
    saved: Mapping[str, Any], like: Any, names: Sequence[str]
) -> dict[str, PyTree]:
    """Those of the fields `names` of `like` that a saved state does not have."""
    return {
        name: getattr(like, name)
        for name in names
        if not jax.tree.leaves(saved.get(name)) and jax.tree.leaves(getattr(like, name))
    }


def note(where: str, parts: Mapping[str, PyTree]) -> None:
    """Say that a run resumes without these parts."""
    print(
        f"note: {where} was saved without {' and '.join(parts)} "
        f"({num_bytes(parts) / 1e6:.1f} MB); the run resumes with those of a new run",
        flush=True,
    )


def num_bytes(tree: PyTree) -> int:
    """Bytes of all leaves in memory."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

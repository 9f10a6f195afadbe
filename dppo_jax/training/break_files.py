"""Write the state before a simulation diverged to the run directory, and read it.

`broken/<iteration>.npz` holds the first step of an iteration in which a simulation
diverged: the state of the environment before the step, one array for each leaf, such as
`state/env/env/env/env/physics/qpos`, the chunk of actions `action`, and the bounds of
observations and actions, from which the environment is made again.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.errors import SettingsError
from dppo_jax.normalize import Normalizer, read_npz
from dppo_jax.training.added_leaves import is_added
from dppo_jax.training.trees import check_matches, named_leaves
from dppo_jax.types import Array, Break, VecEnv

FOLDER = "broken"
# Files of a run. The first ones tell most, and later ones may be thousands.
MOST = 10
_STATE, _BOUNDS = "state/", "normalizer/"


def save_break(
    run_dir: str | os.PathLike, iteration: int, broken: Break, normalizer: Normalizer
) -> Path | None:
    """Write the break of an iteration, unless there was none or `MOST` files exist.

    Returns:
        The new file; None: nothing was written.

    Raises:
        OSError: it cannot be written, for example because the disk is full.
    """
    if not bool(broken.found):
        return None
    path = Path(run_dir, FOLDER, f"{iteration}.npz")
    if path.exists() or len(list(path.parent.glob("*.npz"))) >= MOST:
        return None
    arrays = {"action": broken.action, "env": broken.env, "chunk": broken.chunk}
    arrays |= {_STATE + name: x for name, x in named_leaves(broken.state).items()}
    arrays |= {_BOUNDS + name: x for name, x in normalizer._asdict().items()}
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        whole = {name: np.asarray(x) for name, x in arrays.items()}
        np.savez(file, allow_pickle=False, **whole)
    temporary.replace(path)
    return path


def load_break(
    path: str | os.PathLike, make_env: Callable[[Normalizer], VecEnv]
) -> tuple[VecEnv, Any, Array]:
    """Read a step in which a simulation diverged.

    Args:
        path: `broken/<iteration>.npz` in a run directory.
        make_env: bounds -> the environment of the run, with `num_envs` 1.

    Returns:
        The environment, its state before the step, and the chunk of actions [1, Ta,
        Da]: `env.step(state, action)` repeats the step.

    Raises:
        SettingsError: no such file, a damaged one, or another environment.
    """
    bounds = [_BOUNDS + name for name in Normalizer._fields]
    arrays = read_npz(Path(path), ("action", *bounds), None)
    env = make_env(Normalizer(*(arrays[name] for name in bounds)))
    if env.num_envs != 1:
        raise SettingsError(
            f"make_env made {env.num_envs} environments, but {path} is of one; pass "
            "num_envs=1."
        )
    like = jax.eval_shape(env.reset, jax.random.split(jax.random.key(0), 1))
    found = {
        name.removeprefix(_STATE): x[None]
        for name, x in arrays.items()
        if name.startswith(_STATE)
    }
    names = named_leaves(jax.tree.map(_as_saved, like))
    found |= {
        name: np.zeros(x.shape, x.dtype)
        for name, x in names.items()
        if name not in found and is_added(name)
    }
    check_matches(
        {"action": arrays["action"], **found},
        {"action": np.zeros(env.action_shape), **names},
        what=f"the step in {path}",
        cure="make the environment with the settings of the run, on the same engine.",
    )
    leaves = [jnp.asarray(found[name], x.dtype) for name, x in names.items()]
    saved = jax.tree.unflatten(jax.tree.structure(like), leaves)
    state = jax.tree.map(_as_before, saved, like)
    return env, state, jnp.asarray(arrays["action"])[None]


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _as_saved(x: Any) -> Any:
    return jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x


def _as_before(saved: Any, like: Any) -> Any:
    """Undo `_as_saved`, with the generator that the keys of the environment have."""
    if not _is_key(like):
        return saved
    generator: list[Any] = []  # Told of arrays, not of their shapes.
    jax.eval_shape(lambda key: generator.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(saved, impl=generator[0])

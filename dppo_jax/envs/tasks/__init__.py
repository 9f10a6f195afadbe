"""The tasks that can be made by name; one file each."""

from collections.abc import Callable
from typing import Any

from dppo_jax.envs.tasks.avoid import make_avoid
from dppo_jax.types import Env

TASKS: dict[str, Callable[..., Env]] = {"avoid": make_avoid}


def make_task(name: str, *, engine: str = "auto", **options: Any) -> Env:
    """Make the task called `name`.

    Args:
        name: one of `TASKS`.
        engine: physics engine, see `dppo_jax.envs.physics`.
        **options: further arguments of the task, e.g. `rewarded_gap` of "avoid".

    Raises:
        ValueError: for an unknown name.
    """
    if name not in TASKS:
        raise ValueError(f"Unknown task {name!r}; known tasks are {sorted(TASKS)}.")
    return TASKS[name](engine=engine, **options)

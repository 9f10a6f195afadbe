"""The tasks that can be made by name."""

import functools
from collections.abc import Callable
from typing import Any

from dppo_jax.envs.adapters import PURE, make_adapted
from dppo_jax.envs.tasks.avoid import make_avoid
from dppo_jax.envs.tasks.locomotion import RUNNERS, make_runner
from dppo_jax.types import Env

TASKS: dict[str, Callable[..., Env]] = {
    "avoid": make_avoid,
    **{name: functools.partial(make_runner, name) for name in RUNNERS},
}


def make_task(name: str, *, engine: str = "auto", **options: Any) -> Env:
    """Make the task called `name`.

    Args:
        name: one of `TASKS`, or `library:name` as in "brax:ant", see
            `dppo_jax.envs.adapters`.
        engine: physics engine, see `dppo_jax.envs.physics`.
        **options: further arguments of the task, e.g. `rewarded_gap` of "avoid".

    Raises:
        ValueError: for an unknown name, or one of a task that runs in host processes.
    """
    if ":" in name:
        return make_adapted(name, engine=engine, **options)
    if name not in TASKS:
        raise ValueError(
            f"Unknown task {name!r}; known tasks are {sorted(TASKS)}, and those of "
            f"other libraries, {', '.join(f'{library}:NAME' for library in PURE)}."
        )
    return TASKS[name](engine=engine, **options)

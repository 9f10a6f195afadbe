"""Make tasks by name."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from dppo_jax.envs.adapters import PURE, is_library, make_adapted
from dppo_jax.envs.outside import make_outside
from dppo_jax.envs.tasks import can, lift, square, transport
from dppo_jax.envs.tasks.avoid import make_avoid
from dppo_jax.envs.tasks.locomotion import RUNNERS, make_runner
from dppo_jax.envs.tasks.tabletop import make_table_env
from dppo_jax.errors import SettingsError
from dppo_jax.objects import accepts, is_reference, load_object
from dppo_jax.types import Env

TASKS: dict[str, Callable[..., Env]] = {
    "avoid": make_avoid,
    **{name: functools.partial(make_runner, name) for name in RUNNERS},
    "lift": functools.partial(make_table_env, lift.TASK),
    "can": functools.partial(make_table_env, can.TASK),
    "square": functools.partial(make_table_env, square.TASK),
    "transport": functools.partial(make_table_env, transport.TASK),
}


def make_task(name: str, /, *, engine: str = "auto", **options: Any) -> Env:
    """Make the task called `name`.

    Args:
        name: one of `TASKS`; or `library:name` as in "brax:ant", see
            `dppo_jax.envs.adapters`; or a function outside the package,
            `module:function` or `path/to/file.py:function`, see
            `dppo_jax.envs.outside`.
        engine: physics engine, see `dppo_jax.envs.physics`.
        **options: further arguments of the task, e.g. `rewarded_gap` of "avoid".

    Raises:
        SettingsError: an unknown name or option, a task that runs in host processes, or
            a function that does not return an Env.
    """
    if is_reference(name) and not is_library(name):
        return make_outside(name, engine=engine, **options)
    if ":" in name:
        return make_adapted(name, engine=engine, **options)
    if name not in TASKS:
        raise SettingsError(
            f"Unknown task {name!r}; known tasks are {sorted(TASKS)}, and those of "
            f"other libraries, {', '.join(f'{library}:NAME' for library in PURE)}; "
            "a task of your own is module:function or path/to/file.py:function."
        )
    known = list(inspect.signature(TASKS[name]).parameters)
    for option in options:
        if option not in known:
            raise SettingsError(
                f"env.options.{option} is not an option of {name}; it has "
                f"{', '.join(x for x in known if x != 'engine') or 'none'}."
            )
    return TASKS[name](engine=engine, **options)


def takes_option(name: str, option: str) -> bool:
    """Whether a task has this option. Those of other libraries have none of ours.

    Raises:
        SettingsError: no such function outside the package.
    """
    if is_reference(name) and not is_library(name):
        return accepts(load_object(name), option)
    # An unknown name is for `make_task` to refuse.
    return ":" not in name and (name not in TASKS or accepts(TASKS[name], option))

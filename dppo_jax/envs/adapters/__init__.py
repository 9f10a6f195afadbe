"""Environments of other libraries, as tasks by the name `library:name`.

| name            | becomes                                                        |
|-----------------|----------------------------------------------------------------|
| `brax:ant`      | an `Env`, pure like our own                                    |
| `playground:..` | an `Env` too                                                   |
| `gymnasium:..`  | a `VecEnv` of host processes, see `adapters.host`              |
| `robosuite:..`  | the same                                                       |

The libraries themselves are imported where one of their tasks is made, not before.
"""

import importlib
from typing import Any

from dppo_jax.envs.adapters.host import HostTask
from dppo_jax.errors import SettingsError
from dppo_jax.types import Env

PURE = ("brax", "playground")
HOST = ("gymnasium", "robosuite")


def is_library(name: str) -> bool:
    """Whether the task `name` is one of another library that is known here."""
    return name.partition(":")[0] in (*PURE, *HOST) and ":" in name


def is_host(name: str) -> bool:
    """Whether the task `name` runs in host processes instead of the program."""
    return name.partition(":")[0] in HOST and ":" in name


def make_adapted(name: str, *, engine: str = "auto", **options: Any) -> Env:
    """The pure task `library:name`, at its own control rate.

    Args:
        name: e.g. "brax:ant" or "playground:CartpoleBalance".
        engine: "auto"; other libraries bring their own physics.
        **options: further arguments, see `make_brax` and `make_playground`.

    Raises:
        SettingsError: an unknown library or task, a missing package, an engine, or the
            name of a task that runs in host processes.
    """
    _check(name, engine)
    if is_host(name):
        raise SettingsError(
            f"{name!r} runs in host processes, which are a VecEnv and no Env; make it "
            "with dppo_jax.envs.build.make_env, or with host_vec_env."
        )
    return _maker(name)(name.partition(":")[2], **options)


def make_host_task(name: str, *, engine: str = "auto", **options: Any) -> HostTask:
    """The task `library:name` for `host_vec_env`.

    Args:
        name: e.g. "gymnasium:Hopper-v5" or "robosuite:Lift".
        engine: "auto"; other libraries bring their own physics.
        **options: further arguments, see `make_gymnasium` and `make_robosuite`.

    Raises:
        SettingsError: an unknown library or task, a missing package, or an engine.
    """
    _check(name, engine)
    if not is_host(name):
        raise SettingsError(f"{name!r} is a pure task; make it with make_task.")
    return _maker(name)(name.partition(":")[2], **options)


def _check(name: str, engine: str) -> None:
    library = name.partition(":")[0]
    if library not in (*PURE, *HOST):
        raise SettingsError(
            f"Unknown library {library!r} in the task {name!r}; known ones are "
            f"{', '.join(f'{known}:' for known in (*PURE, *HOST))}. A task of your own "
            "is module:function or path/to/file.py:function."
        )
    if engine != "auto":
        raise SettingsError(
            f"env.engine={engine!r} is for the tasks of dppo_jax; {name!r} brings its "
            "own physics, so leave 'auto' and see the options of its library."
        )


def _maker(name: str) -> Any:
    library = name.partition(":")[0]
    module = importlib.import_module(f"{__name__}.{library}")
    return getattr(module, f"make_{library}")

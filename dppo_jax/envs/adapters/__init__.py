"""Make environments of other libraries by the name `library:name`.

| name            | result                                                         |
|-----------------|----------------------------------------------------------------|
| `brax:ant`      | an `Env` of pure functions                                     |
| `playground:..` | an `Env` of pure functions                                     |
| `gymnasium:..`  | a `VecEnv` of host processes, see `adapters.host`              |
| `robosuite:..`  | a `VecEnv` of host processes                                   |

A library is imported only when one of its tasks is made.
"""

import importlib
from typing import Any

from dppo_jax.envs.adapters.host_task import HostTask
from dppo_jax.errors import SettingsError
from dppo_jax.types import Env

PURE = ("brax", "playground")
HOST = ("gymnasium", "robosuite")


def is_library(name: str) -> bool:
    """Whether `name` starts with a known library, as in `brax:ant`."""
    return name.partition(":")[0] in (*PURE, *HOST) and ":" in name


def is_host(name: str) -> bool:
    """Whether the task `name` runs in host processes, outside the compiled program."""
    return name.partition(":")[0] in HOST and ":" in name


def make_adapted(name: str, /, *, engine: str = "auto", **options: Any) -> Env:
    """Make the task `library:name` as an `Env`, at its own control rate.

    Args:
        name: e.g. "brax:ant" or "playground:CartpoleBalance".
        engine: must be "auto", because other libraries have their own physics.
        **options: further arguments, see `make_brax` and `make_playground`.

    Raises:
        SettingsError: an unknown library or task, a missing package, another engine, or
            a task that runs in host processes.
    """
    _check(name, engine)
    if is_host(name):
        raise SettingsError(
            f"{name!r} runs in host processes, as a VecEnv instead of an Env; make it "
            "with dppo_jax.envs.build.make_env, or with host_vec_env."
        )
    return _maker(name)(name.partition(":")[2], **options)


def make_host_task(name: str, /, *, engine: str = "auto", **options: Any) -> HostTask:
    """Make the task `library:name` for `host_vec_env`.

    Args:
        name: e.g. "gymnasium:Hopper-v5" or "robosuite:Lift".
        engine: must be "auto", because other libraries have their own physics.
        **options: further arguments, see `make_gymnasium` and `make_robosuite`.

    Raises:
        SettingsError: an unknown library, a missing package, another engine, or a task
            that does not run in host processes.
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
            f"env.engine={engine!r} is for the tasks of dppo_jax; {name!r} has its "
            "own physics, so use 'auto' and see the options of its library."
        )


def _maker(name: str) -> Any:
    library = name.partition(":")[0]
    module = importlib.import_module(f"{__name__}.{library}")
    return getattr(module, f"make_{library}")

"""Tasks and wrappers that a user writes outside of the package, by name.

See `dppo_jax.objects` for the names: `module:function` or `path/to/file.py:function`.
"""

from typing import Any

from dppo_jax.envs.adapters import HOST, PURE
from dppo_jax.errors import SettingsError
from dppo_jax.objects import call, load_object, takes
from dppo_jax.types import Env


def make_outside(reference: str, *, engine: str = "auto", **options: Any) -> Env:
    """The task that a function makes: `make(engine=..., **options) -> Env`.

    Args:
        reference: its name, e.g. "path/to/reach.py:make_task".
        engine: physics engine, see `dppo_jax.envs.physics`; for a function that names
            no argument `engine` only "auto".
        **options: its further arguments.

    Raises:
        SettingsError: no such function, arguments that it does not take, or a result
            that is no Env.
    """
    libraries = ", ".join(f"{library}:" for library in (*PURE, *HOST))
    make = load_object(
        reference,
        hint=f"env.task names it. Libraries known by name are {libraries}.",
    )
    if engine != "auto" and not takes(make, "engine"):
        raise SettingsError(
            f"env.engine={engine!r} was asked for, but {reference} takes no argument "
            "'engine'; leave 'auto', or let it take one."
        )
    return _checked(
        reference, call(reference, make, options=options, offered={"engine": engine})
    )


def apply_wrapper(env: Env, reference: str) -> Env:
    """The environment behind a wrapper `Env -> Env` that is loaded by name.

    Raises:
        SettingsError: no such function, or a result that is no Env.
    """
    wrap = load_object(reference, hint="env.wrappers names it.")
    return _checked(reference, call(reference, wrap, env))


def _checked(reference: str, env: Any) -> Env:
    if not isinstance(env, Env):
        raise SettingsError(
            f"{reference} returned a {type(env).__name__}; let it return a "
            "dppo_jax.types.Env, a single environment that is not vectorised."
        )
    return env

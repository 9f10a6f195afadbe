"""Load tasks and wrappers of a user by name.

See `dppo_jax.objects` for the names: `module:function` or `path/to/file.py:function`.
"""

from typing import Any

from dppo_jax.envs.adapters import HOST, PURE
from dppo_jax.envs.check import check_env, with_plain_numbers
from dppo_jax.errors import SettingsError
from dppo_jax.objects import call, load_object, takes
from dppo_jax.types import Env


def make_outside(reference: str, /, *, engine: str = "auto", **options: Any) -> Env:
    """Make a task by calling a user's function `make(engine=..., **options) -> Env`.

    Args:
        reference: name of the function, e.g. "path/to/reach.py:make_task".
        engine: physics engine, see `dppo_jax.envs.physics`; must be "auto" if the
            function has no argument `engine`.
        **options: further arguments of the function.

    Raises:
        SettingsError: no such function, arguments that it does not take, or a result
            that is not an Env, see `check_env`.
    """
    libraries = ", ".join(f"{library}:" for library in (*PURE, *HOST))
    make = load_object(
        reference,
        hint=f"env.task names it. Libraries known by name are {libraries}.",
    )
    if engine != "auto" and not takes(make, "engine"):
        raise SettingsError(
            f"env.engine={engine!r} is set, but {reference} takes no argument "
            "'engine'; use 'auto', or add the argument."
        )
    return _checked(
        reference, call(reference, make, options=options, offered={"engine": engine})
    )


def apply_wrapper(env: Env, reference: str) -> Env:
    """Load a wrapper `Env -> Env` by name and apply it.

    Raises:
        SettingsError: no such function, or a result that is not an Env, see
            `check_env`.
    """
    wrap = load_object(reference, hint="env.wrappers names it.")
    return _checked(reference, call(reference, wrap, env))


def _checked(reference: str, env: Any) -> Env:
    if not isinstance(env, Env):
        raise SettingsError(
            f"{reference} returned a {type(env).__name__}; it must return a "
            "dppo_jax.types.Env, a single environment that is not vectorised."
        )
    check_env(env, reference)
    return with_plain_numbers(env)

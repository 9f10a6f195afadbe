"""Load a user's own tasks and wrappers, outside the package, by name.

See `dppo_jax.objects` for the names: `module:function` or `path/to/file.py:function`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dppo_jax.envs.adapters import HOST, PURE
from dppo_jax.errors import SettingsError
from dppo_jax.objects import call, load_object, takes
from dppo_jax.types import Env, TimeStep


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


def check_env(name: str, env: Env) -> None:
    """Check the shapes of what `reset` and `step` return, without computing them.

    Without this check they would fail deep inside a roll-out.

    Args:
        name: of the function that made `env`, for messages.

    Raises:
        SettingsError: a field is missing or has another shape or type than `Env` and
            `TimeStep` say, or `step` changes those of the state.
    """
    problem = next(_problems(env), None)
    if problem is not None:
        raise SettingsError(f"{name}: {problem}.")


def _problems(env: Env) -> Iterator[str]:
    """Describe what is wrong with an Env; only the first result is reliable."""
    obs_shape, action_shape = env.obs_shape, env.action_shape
    if not isinstance(obs_shape, Mapping) or len(obs_shape.get("state", ())) != 1:
        yield f"Env.obs_shape is {obs_shape}; it must be {{'state': (Do,)}}"
    if len(action_shape) != 1:
        yield f"Env.action_shape is {action_shape}; it must be (Da,)"
    state = jax.eval_shape(env.reset, jax.random.key(0))
    if not hasattr(state, "obs"):
        yield f"reset returns a {type(state).__name__} without a field 'obs'; add it"
    yield from _obs_problems("reset", state.obs, obs_shape)
    action = jax.ShapeDtypeStruct(tuple(action_shape), jnp.float32)
    results = jax.eval_shape(env.step, state, action)
    if not (isinstance(results, tuple) and len(results) == 2):
        yield f"step returns a {type(results).__name__}; it must be (state, TimeStep)"
    next_state, outcome = results
    if not isinstance(outcome, TimeStep):
        yield (
            f"step returns a state and a {type(outcome).__name__}, which must be a "
            "dppo_jax.types.TimeStep"
        )
    yield from _obs_problems("step", outcome.obs, obs_shape)
    for field in ("metrics", "trace"):
        if not isinstance(getattr(outcome, field), Mapping):
            yield f"TimeStep.{field} must be a dictionary, such as {{}}"
    scalars = {name: getattr(outcome, name) for name in TimeStep._fields[1:4]}
    scalars |= {f"metrics[{name!r}]": x for name, x in outcome.metrics.items()}
    for name, x in scalars.items():
        if not _is_number(x):
            yield f"TimeStep.{name} is {_text(x)}, but must be one number, float32[]"
    yield from _state_problems(state, next_state)


def _obs_problems(where: str, obs: Any, shapes: Mapping[str, Any]) -> Iterator[str]:
    """Compare the observations that `where` returns with the declared shapes."""
    shapes = {name: tuple(shape) for name, shape in shapes.items()}
    if not isinstance(obs, Mapping):
        yield f"obs after {where} is {_text(obs)}; it must be a dictionary, {shapes}"
    found = {name: x.shape for name, x in obs.items()}
    if found != shapes:
        yield (
            f"obs after {where} has the shapes {found}, but Env.obs_shape is {shapes}; "
            "correct one of them"
        )


def _state_problems(before: Any, after: Any) -> Iterator[str]:
    """Compare the states after `reset` and after `step`, which a loop carries."""
    one, other = (
        {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(tree)}
        for tree in (before, after)
    )
    cure = "step must return a state like that of reset"
    if len({jax.tree.structure(tree) for tree in (before, after)}) > 1:
        odd = sorted(one.keys() ^ other.keys())
        yield f"states after reset and after step differ in their fields {odd}; {cure}"
    for path, x in one.items():
        if not _lasts(x, other[path]):
            yield (
                f"state{path} is {_text(x)} after reset, but {_text(other[path])} "
                f"after step; {cure}"
            )


def _is_number(x: Any) -> bool:
    if getattr(x, "shape", None) != () or jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return False
    return jnp.issubdtype(jnp.promote_types(x.dtype, jnp.float32), jnp.floating)


def _lasts(before: Any, after: Any) -> bool:
    """Whether a loop can carry a leaf; JAX converts weakly typed ones, such as 0."""
    same = before.dtype == after.dtype or (
        before.weak_type and jnp.result_type(before, after) == after.dtype
    )
    return before.shape == after.shape and same


def _text(x: Any) -> str:
    """Describe an array as in float32[3], and anything else by its type."""
    if not hasattr(x, "dtype"):
        return f"a {type(x).__name__}"
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"


def _checked(reference: str, env: Any) -> Env:
    if not isinstance(env, Env):
        raise SettingsError(
            f"{reference} returned a {type(env).__name__}; it must return a "
            "dppo_jax.types.Env, a single environment that is not vectorised."
        )
    check_env(reference, env)
    return env

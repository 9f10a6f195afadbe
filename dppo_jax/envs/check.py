"""Check what an environment returns, before anything is compiled or trained."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dppo_jax.errors import SettingsError
from dppo_jax.types import Array, Env, TimeStep

# Fields of a TimeStep that are numbers.
_NUMBERS = ("reward", "terminated", "truncated")


def check_env(env: Any, name: str = "the environment") -> None:
    """Check what an environment returns; name a wrong entry and what it should be.

    Without this check the error would occur inside a compiled roll-out. For an `Env`
    only shapes are computed. A Gymnasium environment takes one step, because only a
    step shows what it returns; afterwards it is at its start, or after one step.
    Numbers in arrays of shape (1,) are accepted, because the stages convert them
    (`with_plain_numbers`).

    Args:
        env: an `Env`, a `HostTask` such as `make_host_task` returns, or a
            `gymnasium.Env`.
        name: for messages.

    Raises:
        SettingsError: a field is missing or has another shape or type than `Env` and
            `TimeStep` say, or `step` changes those of the state.
    """
    if isinstance(env, Env):
        problem = next(_problems(env), None)
        if problem is not None:
            raise SettingsError(f"{name}: {problem}.")
        return
    # Gymnasium takes long to import.
    from dppo_jax.envs.adapters.host_task import HostTask, look_at, look_into

    if isinstance(env, HostTask):
        look_at(env)
    elif hasattr(env, "observation_space") and hasattr(env, "step"):
        look_into(HostTask(name, lambda: env), env)
    else:
        raise SettingsError(
            f"{name} is a {type(env).__name__}; pass a dppo_jax.types.Env, a HostTask "
            "or a gymnasium.Env."
        )


def with_plain_numbers(env: Env) -> Env:
    """Convert reward, end flags and metrics of shape (1,) to scalars."""
    state = jax.eval_shape(env.reset, jax.random.key(0))
    action = jax.ShapeDtypeStruct(tuple(env.action_shape), jnp.float32)
    outcome = jax.eval_shape(env.step, state, action)[1]
    numbers = jax.tree.leaves((outcome[1:4], dict(outcome.metrics)))
    if not any(x.shape == (1,) for x in numbers):
        return env

    def step(state: Any, action: Array) -> tuple[Any, TimeStep]:
        state, outcome = env.step(state, action)
        plain: dict[str, Any] = {
            name: jnp.reshape(getattr(outcome, name), ()) for name in _NUMBERS
        }
        metrics = {name: jnp.reshape(x, ()) for name, x in outcome.metrics.items()}
        return state, outcome._replace(metrics=metrics, **plain)

    return env._replace(step=step)


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
    scalars = {name: getattr(outcome, name) for name in _NUMBERS}
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
    if getattr(x, "shape", None) not in ((), (1,)) or jnp.issubdtype(
        x.dtype, jax.dtypes.extended
    ):
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

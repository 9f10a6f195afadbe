"""Make an `Env` of an environment of Brax or MuJoCo Playground.

Both have `reset(key)` and `step(state, action)`, which return a state with `obs`,
`reward`, `done` and `metrics`. Their own auto-reset and episode wrappers are not used,
because they would replace terminal observations.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dppo_jax.errors import SettingsError
from dppo_jax.types import Array, Env, Obs, PyTree, TimeStep


class FunctionalState(NamedTuple):
    """State of the task.

    inner: the state of the library.
    obs: `{"state": [Do]}`.
    """

    inner: Any
    obs: Obs


def from_functional(env: Any, *, task: str, obs_key: str = "state") -> Env:
    """Make an `Env` of an environment of Brax or MuJoCo Playground.

    Its `done` is a termination, because without a wrapper neither library has a time
    limit. The metrics are the scalar metrics of its state.

    Args:
        env: unwrapped; `reset: key -> state`, `step: (state, action) -> state`.
        task: its name, for messages.
        obs_key: the entry to use if observations are dictionaries.

    Raises:
        SettingsError: a missing `obs_key`, or observations of another shape than [Do].
    """
    types = _lasting_types(env)

    def observe(state: Any) -> Obs:
        obs = state.obs
        if isinstance(obs, Mapping):
            if obs_key not in obs:
                raise SettingsError(
                    f"{task} has no observation {obs_key!r}; set env.options.obs_key "
                    f"to one of {sorted(obs)}."
                )
            obs = obs[obs_key]
        return {"state": jnp.asarray(obs, jnp.float32)}

    def reset(key: Array) -> FunctionalState:
        state = _cast(types, env.reset(key))
        return FunctionalState(state, observe(state))

    def step(state: FunctionalState, action: Array) -> tuple[FunctionalState, TimeStep]:
        chex.assert_shape(action, (env.action_size,))
        inner = _cast(types, env.step(_copy(state.inner), action))
        obs = observe(inner)
        metrics = {
            name: jnp.asarray(value, jnp.float32)
            for name, value in inner.metrics.items()
            if jnp.ndim(value) == 0
        }
        return FunctionalState(inner, obs), TimeStep(
            obs=obs,
            reward=jnp.asarray(inner.reward, jnp.float32),
            terminated=jnp.asarray(inner.done, jnp.float32),
            truncated=jnp.float32(0),
            metrics=metrics,
            trace={},
        )

    shape = jax.eval_shape(reset, jax.random.key(0)).obs["state"].shape
    if len(shape) != 1:
        raise SettingsError(
            f"{task} observes {shape}, not a vector [Do]; choose another entry with "
            "env.options.obs_key."
        )
    return Env(
        reset=reset,
        step=step,
        obs_shape={"state": shape},
        action_shape=(env.action_size,),
        max_steps=None,
        action_range=(-1.0, 1.0),
    )


def _lasting_types(env: Any) -> PyTree:
    """Find common types of the states that `reset` and `step` return.

    A step may turn an integer 0, or a weakly typed one, into a float32. Loops need
    constant types, and every change of type would compile the program again.
    """

    def both(key: Array) -> tuple[Any, Any]:
        state = env.reset(key)
        return state, env.step(_copy(state), jnp.zeros(env.action_size))

    def common(one: Any, other: Any) -> Any:
        return one.dtype if _is_key(one) else jnp.promote_types(one.dtype, other.dtype)

    return jax.tree.map(common, *jax.eval_shape(both, jax.random.key(0)))


def _cast(types: PyTree, state: PyTree) -> PyTree:
    def cast(dtype: Any, x: Any) -> Any:
        return x if _is_key(x) else jax.lax.convert_element_type(x, dtype)

    return jax.tree.map(cast, types, state)


def _copy(state: PyTree) -> PyTree:
    """Copy the containers of a state, not its arrays.

    Some environments modify the dictionaries of the state that is passed to them, which
    the caller may still use.
    """
    return jax.tree.map(lambda x: x, state)


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)

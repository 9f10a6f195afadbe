"""What Brax and MuJoCo Playground share: `reset(key)` and `step(state, action)`.

Both return a state with `obs`, `reward`, `done` and `metrics`. It is taken raw,
without their own auto-reset and episode wrappers, so that terminal observations
survive ours.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dppo_jax.types import Array, Env, Obs, PyTree, TimeStep


class FunctionalState(NamedTuple):
    """inner: the state of the library.  obs: `{"state": [Do]}`."""

    inner: Any
    obs: Obs


def from_functional(env: Any, *, task: str, obs_key: str = "state") -> Env:
    """An environment of Brax or MuJoCo Playground as an `Env`.

    Its `done` is a termination: neither library ends an episode for its length
    without a wrapper. Metrics are the scalars of its state.

    Args:
        env: unwrapped; `reset: key -> state`, `step: (state, action) -> state`.
        task: its name, for messages.
        obs_key: which entry is observed, where observations are dictionaries.

    Raises:
        ValueError: an `obs_key` that is not there, or observations of other shape
            than [Do].
    """

    def observe(state: Any) -> Obs:
        obs = state.obs
        if isinstance(obs, Mapping):
            if obs_key not in obs:
                raise ValueError(
                    f"{task} has no observation {obs_key!r}; set env.options.obs_key "
                    f"to one of {sorted(obs)}."
                )
            obs = obs[obs_key]
        return {"state": jnp.asarray(obs, jnp.float32)}

    def reset(key: Array) -> FunctionalState:
        state = env.reset(key)
        state = _as_types_of(state, state)
        return FunctionalState(state, observe(state))

    def step(state: FunctionalState, action: Array) -> tuple[FunctionalState, TimeStep]:
        chex.assert_shape(action, (env.action_size,))
        # Some environments update the dictionaries of the state that they are given,
        # which would change it for those that still hold it.
        own = jax.tree.map(lambda x: x, state.inner)
        inner = _as_types_of(state.inner, env.step(own, action))
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
        )

    shape = jax.eval_shape(reset, jax.random.key(0)).obs["state"].shape
    if len(shape) != 1:
        raise ValueError(
            f"{task} observes {shape}, not a vector [Do]; choose another entry with "
            "env.options.obs_key."
        )
    return Env(
        reset=reset,
        step=step,
        obs_shape={"state": shape},
        action_shape=(env.action_size,),
        max_steps=None,
    )


def _as_types_of(before: PyTree, now: PyTree) -> PyTree:
    """A step may turn, say, a weakly typed 0 into a float32. Loops need types that
    stay, and a program would be compiled once more for each."""

    def cast(old: Any, new: Any) -> Any:
        dtype = jnp.result_type(old)
        is_key = jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
        return new if is_key else jax.lax.convert_element_type(new, dtype)

    return jax.tree.map(cast, before, now)

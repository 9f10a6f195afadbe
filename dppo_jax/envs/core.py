"""From one environment to many: `vectorize` runs a batch that resets itself."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dppo_jax.errors import SettingsError
from dppo_jax.training import parallel
from dppo_jax.types import Array, Env, Obs, PyTree, TimeStep, VecEnv


class VecState(NamedTuple):
    """State of a VecEnv; every leaf has the leading axis [B].

    env: environment states.
    obs: what to act on next.
    episode_return: [B] rewards of the running episode.
    episode_length: [B] steps of the running episode.
    key: [B] one key per environment, consumed by its own resets alone.
    """

    env: Any
    obs: Obs
    episode_return: Array
    episode_length: Array
    key: Array


def select(mask: Array, on_true: PyTree, on_false: PyTree) -> PyTree:
    """Leafwise `where`; `mask` [...] lines up with the leading axes of the leaves."""

    def where(true, false):
        return jnp.where(
            mask.reshape(mask.shape + (1,) * (true.ndim - mask.ndim)), true, false
        )

    return jax.tree.map(where, on_true, on_false)


def vectorize(env: Env, num_envs: int) -> VecEnv:
    """Run `num_envs` copies of `env` that reset themselves.

    After a step the state holds the new episode where one ended, while the
    TimeStep keeps the observation that ended the old one, so that a truncated
    episode can still bootstrap from it. `reset` takes one key per environment, from
    which it draws all its resets: its trajectory does not depend on how many others
    run.

    Metrics gain `episode_return` and `episode_length` [B], which include the
    present step and are therefore final where an episode ended. A length that the
    environment reports itself stays, because it knows steps inside of a chunk.

    Raises:
        SettingsError: if `num_envs` is not positive.
    """
    if num_envs < 1:
        raise SettingsError(f"num_envs={num_envs} must be at least 1.")

    def fresh(key: Array) -> VecState:
        key, reset_key = jax.random.split(key)
        state = env.reset(reset_key)
        return VecState(
            env=state,
            obs=state.obs,
            episode_return=jnp.float32(0),
            episode_length=jnp.int32(0),
            key=key,
        )

    def reset(keys: Array) -> VecState:
        chex.assert_shape(keys, (num_envs // parallel.num_shards(),))
        return jax.vmap(fresh)(keys)

    def step(state: VecState, action: Array) -> tuple[VecState, TimeStep]:
        env_state, time_step = jax.vmap(env.step)(state.env, action)
        state = state._replace(
            env=env_state,
            obs=time_step.obs,
            episode_return=state.episode_return + time_step.reward,
            episode_length=state.episode_length + 1,
        )
        metrics = {
            "episode_length": state.episode_length.astype(jnp.float32),
            **time_step.metrics,
            "episode_return": state.episode_return,
        }
        done = jnp.maximum(time_step.terminated, time_step.truncated) > 0
        # A branch for the whole batch: most steps end no episode, and resets may be
        # as costly as steps. Inside the vmap it would become a select of both.
        state = jax.lax.cond(
            done.any(),
            lambda state: select(done, jax.vmap(fresh)(state.key), state),
            lambda state: state,
            state,
        )
        return state, time_step._replace(metrics=metrics)

    return VecEnv(
        reset=reset,
        step=step,
        obs_shape=env.obs_shape,
        action_shape=env.action_shape,
        max_steps=env.max_steps,
        num_envs=num_envs,
    )

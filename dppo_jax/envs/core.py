"""`vectorize` makes a batch of environments that reset themselves."""

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
    obs: the observation before the next action.
    episode_return: [B] sum of the rewards of the running episode.
    episode_length: [B] steps of the running episode.
    key: [B] one key per environment, used only for its resets.
    """

    env: Any
    obs: Obs
    episode_return: Array
    episode_length: Array
    key: Array


def select(mask: Array, on_true: PyTree, on_false: PyTree) -> PyTree:
    """Leafwise `where`; the axes of `mask` are the leading axes of the leaves."""

    def where(true, false):
        return jnp.where(
            mask.reshape(mask.shape + (1,) * (true.ndim - mask.ndim)), true, false
        )

    return jax.tree.map(where, on_true, on_false)


def vectorize(env: Env, num_envs: int) -> VecEnv:
    """Run `num_envs` copies of `env` that reset themselves.

    If a step ends an episode, the state is that of the next one, and the TimeStep has
    the last observation of the old one, from which a truncated episode bootstraps.
    `reset` takes one key per environment, from which all its resets are drawn, so its
    trajectory does not depend on the number of environments.

    The metrics `episode_return` and `episode_length` [B] are added. They include the
    current step, so they are final where an episode ends. An `episode_length` that the
    environment reports itself is kept, because it counts control steps inside a chunk.

    Raises:
        SettingsError: `num_envs` is not positive.
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
        # One branch for the whole batch, because most steps end no episode and a reset
        # may cost as much as a step. Inside `vmap` both sides would always run.
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
        keeps_breaks=env.quarantined,
    )

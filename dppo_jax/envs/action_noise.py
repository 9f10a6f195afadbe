"""Noise on the actions of roll-outs that grows as training goes on.

The DPPO paper (arXiv 2409.00588, Sec. 6) asks in this way how stable training is: from
some iteration on, the actions that a policy sampled are disturbed before they act, and
the algorithm does not know. `randomize` has noise that is always the same.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dppo_jax.errors import SettingsError
from dppo_jax.types import Array, Obs, TimeStep, VecEnv


class DisturbedState(NamedTuple):
    """State of the wrapper; every leaf has the leading axis [B].

    env: of the environments.
    obs: theirs.
    age: [B] chunks since training began, also over the ends of episodes.
    key: [B] of the noise of the next chunk.
    """

    env: Any
    obs: Obs
    age: Array
    key: Array


def check_noise(scale: float, start: int, ramp: int) -> None:
    """Raise a SettingsError that names a negative or infinite setting."""
    if not 0 <= scale < math.inf:
        raise SettingsError(f"rollout.action_noise={scale} must be 0 or positive.")
    for name, value in (("start", start), ("ramp", ramp)):
        if value < 0:
            raise SettingsError(
                f"rollout.action_noise_{name}={value} must not be negative."
            )


def disturb_actions(
    env: VecEnv, *, scale: float, start: int, ramp: int, num_chunks: int
) -> VecEnv:
    """Add Gaussian noise to the chunks that are executed, whatever explored them.

    Its standard deviation is 0 in the first `start` iterations, rises in equal steps in
    the next `ramp` ones, and is `scale` from the last of these on. The state counts the
    chunks, so the level is no constant of the compiled program and a resumed run goes
    on with it. The metric `action_noise` is the level. A step that broke
    (`envs.breaks`) is repeated by an environment with the same wrapper.

    Args:
        env: actions are normalised.
        scale: in units of half the range of an action in the data.
        start: iterations without noise.
        ramp: iterations until the noise is full; 0: it is at once.
        num_chunks: of an iteration.

    Returns:
        `env` itself if `scale` is 0.

    Raises:
        SettingsError: a negative or infinite number.
    """
    check_noise(scale, start, ramp)
    if not scale:
        return env

    def level(age: Array) -> Array:
        iteration = age // num_chunks
        return scale * jnp.clip((iteration - start + 1) / max(ramp, 1), 0.0, 1.0)

    def reset(keys: Array) -> DisturbedState:
        env_keys, own_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        state = env.reset(env_keys)
        age = jnp.zeros(keys.shape, jnp.int32)
        return DisturbedState(state, state.obs, age, own_keys)

    def restart(state: DisturbedState, keys: Array) -> DisturbedState:
        return reset(keys)._replace(age=state.age)

    def step(state: DisturbedState, action: Array) -> tuple[DisturbedState, TimeStep]:
        key, noise_key = jnp.moveaxis(jax.vmap(jax.random.split)(state.key), 1, 0)
        noise = jax.vmap(lambda key: jax.random.normal(key, env.action_shape))
        now = level(state.age)
        action = action + now[:, None, None] * noise(noise_key)
        env_state, outcome = env.step(state.env, action)
        state = DisturbedState(env_state, env_state.obs, state.age + 1, key)
        metrics = {**outcome.metrics, "action_noise": now}
        return state, outcome._replace(metrics=metrics)

    return env._replace(reset=reset, step=step, restart=restart)

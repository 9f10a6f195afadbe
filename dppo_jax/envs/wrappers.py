"""Wrappers, pure functions `Env -> Env`, which are applied in the order

task -> normalize -> time_limit -> stack_observations -> chunk_actions.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.envs.core import select
from dppo_jax.errors import SettingsError
from dppo_jax.normalize import Normalizer, policy_obs, unnormalize_action
from dppo_jax.types import Array, Env, Obs, TimeStep


class NormalizeState(NamedTuple):
    """obs: normalised; `state` is clipped by `policy_obs`."""

    env: Any
    obs: Obs


class TimeLimitState(NamedTuple):
    """step: steps taken so far."""

    env: Any
    step: Array

    @property
    def obs(self) -> Obs:
        return self.env.obs


class StackState(NamedTuple):
    """obs: the last `To` observations, `{"state": [To, Do]}`."""

    env: Any
    obs: Obs


def check_sizes(normalizer: Normalizer, obs_size: int, action_dim: int) -> None:
    """Raise SettingsError if the normalizer has other sizes than the environment."""
    sizes = {
        "observation": (normalizer.obs_min.shape[-1], obs_size),
        "action": (normalizer.action_min.shape[-1], action_dim),
    }
    for name, (given, needed) in sizes.items():
        if given != needed:
            raise SettingsError(
                f"The normalizer has {name} size {given}, but the environment has "
                f"{needed}; use the normalizer of a data set of this task."
            )


def action_notes(
    name: str, normalizer: Normalizer, action_range: tuple[Any, Any] | None
) -> tuple[str, ...]:
    """Notes on actions of the data outside of the range that an environment accepts.

    Args:
        name: of the environment.
        action_range: as in `Env`.
    """
    if action_range is None:
        return ()
    bounds = (normalizer.action_min, normalizer.action_max)
    least, most = (np.asarray(bound, np.float64) for bound in bounds)
    low, high = (
        np.broadcast_to(np.ravel(bound).astype(np.float64), least.shape)
        for bound in action_range
    )
    # Demonstrators may overshoot a little, and the environment clips that.
    slack = np.where(np.isfinite(high - low), 0.1 * (high - low), 0.0)
    entries = np.flatnonzero((least < low - slack) | (most > high + slack))
    if not len(entries):
        return ()
    i = entries[0]
    return (
        f"entry {i} of the actions of the data goes from {least[i]:.4g} to "
        f"{most[i]:.4g}, but {name} takes {low[i]:.4g} to {high[i]:.4g} "
        f"({len(entries)} of {len(low)} entries differ): the data may hold actions of "
        "another convention, such as absolute instead of relative ones, or other units",
    )


def normalize(env: Env, normalizer: Normalizer) -> Env:
    """Normalise `obs["state"]` by `policy_obs`, and take actions in [-1, 1].

    Raises:
        SettingsError: the normalizer has other sizes than the environment.
    """
    check_sizes(normalizer, env.obs_shape["state"][-1], env.action_shape[-1])

    def normalized(obs: Obs) -> Obs:
        return {**obs, "state": policy_obs(normalizer, obs["state"])}

    def reset(key: Array) -> NormalizeState:
        state = env.reset(key)
        return NormalizeState(state, normalized(state.obs))

    def step(state: NormalizeState, action: Array) -> tuple[NormalizeState, TimeStep]:
        env_state, time_step = env.step(
            state.env, unnormalize_action(normalizer, action)
        )
        obs = normalized(time_step.obs)
        return NormalizeState(env_state, obs), time_step._replace(obs=obs)

    return env._replace(reset=reset, step=step)


def time_limit(env: Env, max_steps: int, *, terminates: bool = False) -> Env:
    """Truncate an episode after `max_steps` steps, unless the last step terminates it.

    The metric `episode_length` is added, the number of steps so far. Inside
    `chunk_actions` it counts control steps.

    Args:
        terminates: terminate the episode instead, so that nothing is bootstrapped.

    Raises:
        SettingsError: `max_steps` is not positive.
    """
    if max_steps < 1:
        raise SettingsError(f"max_steps={max_steps} must be at least 1.")

    def reset(key: Array) -> TimeLimitState:
        return TimeLimitState(env.reset(key), jnp.int32(0))

    def step(state: TimeLimitState, action: Array) -> tuple[TimeLimitState, TimeStep]:
        env_state, time_step = env.step(state.env, action)
        count = state.step + 1
        terminated, truncated = time_step.terminated, time_step.truncated
        at_limit = (count >= max_steps).astype(jnp.float32)
        if terminates:
            # What the task itself has truncated, or what broke, could have gone on.
            terminated = jnp.maximum(terminated, at_limit * (1 - truncated))
        else:
            truncated = jnp.maximum(truncated, at_limit * (1 - terminated))
        metrics = {**time_step.metrics, "episode_length": count.astype(jnp.float32)}
        return TimeLimitState(env_state, count), time_step._replace(
            terminated=terminated, truncated=truncated, metrics=metrics
        )

    return env._replace(reset=reset, step=step, max_steps=max_steps)


def stack_observations(env: Env, num: int) -> Env:
    """Return the last `num` observations, each entry [Do] -> [To, Do], newest last.

    The first observation of an episode is repeated to fill the history.

    Raises:
        SettingsError: `num` is not positive.
    """
    if num < 1:
        raise SettingsError(f"num={num} stacked observations must be at least 1.")

    def reset(key: Array) -> StackState:
        state = env.reset(key)
        return StackState(
            state, {k: jnp.repeat(v[None], num, axis=0) for k, v in state.obs.items()}
        )

    def step(state: StackState, action: Array) -> tuple[StackState, TimeStep]:
        env_state, time_step = env.step(state.env, action)
        obs = {
            k: jnp.concatenate([state.obs[k][1:], v[None]])
            for k, v in time_step.obs.items()
        }
        return StackState(env_state, obs), time_step._replace(obs=obs)

    obs_shape = {k: (num, *shape) for k, shape in env.obs_shape.items()}
    return env._replace(reset=reset, step=step, obs_shape=obs_shape)


def chunk_actions(env: Env, chunk: int, trace: Sequence[str] = ()) -> Env:
    """Execute `chunk` actions per step, open loop: actions are [Ta, Da].

    The reward is summed over the chunk. If the episode ends inside a chunk, the other
    actions are not executed: observation, flags and metrics are those of the last
    executed control step.

    Args:
        env: the environment, with one control step per step.
        chunk: Ta, control steps per step.
        trace: names of traces or metrics of `env` to return as `TimeStep.trace` for
            every control step, [Ta, ...]; after an end the last value is repeated.

    Raises:
        SettingsError: `chunk` is not positive, or `trace` has an unknown name.
    """
    if chunk < 1:
        raise SettingsError(f"chunk={chunk} actions must be at least 1.")
    if trace:
        state = jax.eval_shape(env.reset, jax.random.key(0))
        action = jax.ShapeDtypeStruct(env.action_shape, jnp.float32)
        known = _traceable(jax.eval_shape(env.step, state, action)[1])
        unknown = sorted(set(trace) - set(known))
        if unknown:
            raise SettingsError(f"Cannot trace {unknown}; use some of {sorted(known)}.")

    def step(state: Any, action: Array) -> tuple[Any, TimeStep]:
        chex.assert_shape(action, (chunk, *env.action_shape))

        def control_step(carry, action):
            state, last, ended = carry
            now = env.step(state, action)
            state, time_step = select(ended, (state, last), now)
            reward = jnp.where(ended, 0.0, time_step.reward)
            ended |= jnp.maximum(time_step.terminated, time_step.truncated) > 0
            traced = {name: _traceable(time_step)[name] for name in trace}
            return (state, time_step, ended), (reward, traced)

        # Placeholders: the first control step of a chunk is always executed.
        shapes = jax.eval_shape(env.step, state, action[0])[1]
        last = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        (state, time_step, _), (reward, traced) = jax.lax.scan(
            control_step, (state, last, jnp.bool_(False)), action
        )
        return state, time_step._replace(reward=reward.sum(), trace=traced)

    max_steps = None if env.max_steps is None else math.ceil(env.max_steps / chunk)
    return env._replace(
        step=step, action_shape=(chunk, *env.action_shape), max_steps=max_steps
    )


def _traceable(time_step: TimeStep) -> dict[str, Array]:
    return {**time_step.metrics, **time_step.trace}

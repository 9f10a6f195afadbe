"""A task whose simulation breaks in some episodes, for tests of what that does."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dppo_jax.envs.core import vectorize
from dppo_jax.envs.quarantine import quarantine
from dppo_jax.envs.wrappers import chunk_actions, stack_observations, time_limit
from dppo_jax.types import Array, Env, Obs, TimeStep, VecEnv
from tests import tiny

BREAKS_AT = 3  # control steps
FAULTS = ("nan_obs", "inf_obs", "huge_obs", "nan_reward", "huge_reward", "end_as_well")


class BreakingState(NamedTuple):
    """breaks: [] whether this episode breaks at its step `breaks_at`."""

    breaks: Array
    step: Array
    obs: Obs


def breaking_task(
    fault: str,
    share: float = 0.3,
    rewards_goal: bool = False,
    breaks_at: int = BREAKS_AT,
) -> Env:
    """Observes (action, steps). A share of the episodes break.

    The reward is 1, or with `rewards_goal` -(action - GOAL)^2.
    """

    def reset(key: Array) -> BreakingState:
        breaks = jax.random.uniform(key) < share
        return BreakingState(breaks, jnp.int32(0), {"state": jnp.zeros(2)})

    def step(state: BreakingState, action: Array) -> tuple[BreakingState, TimeStep]:
        count = state.step + 1
        broken = state.breaks & (count >= breaks_at)
        bad = {"inf": jnp.inf, "huge": 1e20}.get(fault.split("_")[0], jnp.nan)
        seen = jnp.stack([action[0], count.astype(jnp.float32)])
        in_reward = fault.endswith("reward")
        earned = -((action[0] - tiny.GOAL) ** 2) if rewards_goal else 1.0
        obs = {"state": jnp.where(broken & (not in_reward), bad, seen)}
        outcome = TimeStep(
            obs=obs,
            reward=jnp.where(broken & in_reward, bad, earned),
            terminated=1.0 * broken * (fault == "end_as_well"),
            truncated=jnp.float32(0),
            metrics={"speed": jnp.where(broken, jnp.nan, action[0])},
            trace={},
        )
        return BreakingState(state.breaks, count, obs), outcome

    return Env(reset, step, {"state": (2,)}, (tiny.ACTION_DIM,), None)


@functools.cache
def breaking_env(num_envs: int = 8, **settings) -> VecEnv:
    """`breaking_task` with the wrappers of a real task; episodes have 4 chunks."""
    task = breaking_task(**{"fault": "nan_obs"} | settings)
    env = time_limit(quarantine(task), 4 * tiny.CHUNK)
    return vectorize(chunk_actions(stack_observations(env, 1), tiny.CHUNK), num_envs)


def exploding() -> Env:
    """A task that a configuration can name; its first step returns 1e9."""
    task = breaking_task("nan_obs", 0.0)

    def step(state: BreakingState, action: Array) -> tuple[BreakingState, TimeStep]:
        state, outcome = task.step(state, action)
        return state, outcome._replace(obs={"state": outcome.obs["state"] + 1e9})

    return task._replace(step=step)

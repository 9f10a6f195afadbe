"""A wrapper that reports the observations of every control step."""

from typing import Any

from dppo_jax.types import Array, Env, TimeStep

TRACE = "observation"
# As `env.wrappers` names it.
NAME = f"{__name__}:with_observations"


def with_observations(env: Env) -> Env:
    """Add the trace `observation` [Do], the state after a step in task units."""

    def step(state: Any, action: Array) -> tuple[Any, TimeStep]:
        state, outcome = env.step(state, action)
        trace = {**outcome.trace, TRACE: outcome.obs["state"]}
        return state, outcome._replace(trace=trace)

    return env._replace(step=step)

"""Describes a task whose simulator runs on the host, and looks at what it returns."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dppo_jax.errors import SettingsError


class HostTask(NamedTuple):
    """A task whose simulator runs on the host.

    name: for messages.
    make: () -> one `gymnasium.Env` with box spaces. It is called in other processes, so
        it must be picklable.
    obs_keys: entries of a dictionary observation to concatenate; empty: all.
    metrics: entries of `info` to report; None: the numbers in `info` of the first step.
    processes: how many processes share the environments; None: one per core, 0: run in
        the calling process.
    """

    name: str
    make: Callable[[], Any]
    obs_keys: tuple[str, ...] = ()
    metrics: tuple[str, ...] | None = None
    processes: int | None = None


def look_at(task: HostTask) -> Any:
    """Make the plan of a task from one step of its environment.

    Raises:
        SettingsError: an environment that cannot be made, or as `look_into`.
    """
    import gymnasium

    try:
        env = task.make()
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise SettingsError(f"{task.name} cannot be made: {error}") from error
    try:
        return look_into(task, env)
    finally:
        env.close()


def look_into(task: HostTask, env: Any) -> Any:
    """As `look_at`, with an environment of the task that is made already.

    Raises:
        SettingsError: unsuitable spaces, observations that differ in size from one
            another or from their space, or a reward or end flag that is no number.
    """
    from dppo_jax.envs.adapters.workers import (
        Plan,
        flat_observation,
        one_number,
        scalars,
    )

    parts = _check_spaces(task, env)
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0)
    next_obs, *numbers, info = env.step(env.action_space.sample())
    # Not the order of the entries in an observation: it may differ from that of a
    # recording of the same environment, and nothing else would tell.
    keys = tuple(task.obs_keys or filter(None, parts))
    size = sum(math.prod(parts[key].shape) for key in keys or parts)
    try:
        for seen in (obs, next_obs):
            flat_observation(seen, keys, size=size)
        for name, value in zip(("reward", "terminated", "truncated"), numbers):
            one_number(value, name)
    except SettingsError as error:
        raise SettingsError(f"{task.name}: {error}") from None
    found = tuple(scalars(info))
    return Plan(
        make=task.make,
        obs_keys=keys,
        metrics=found if task.metrics is None else tuple(task.metrics),
        trace=(),
        obs_size=size,
        action_shape=(int(np.prod(env.action_space.shape)),),
        chunk=1,
        history=1,
        max_steps=None,
        limit_terminates=False,
        action_range=(env.action_space.low, env.action_space.high),
    )


def _check_spaces(task: HostTask, env: Any) -> dict[str, Any]:
    """The spaces of an observation by name; that of a vector is called ""."""
    from gymnasium import spaces

    seen = env.observation_space
    parts = dict(seen.spaces) if isinstance(seen, spaces.Dict) else {"": seen}
    unknown = sorted(set(task.obs_keys) - set(parts))
    if unknown:
        raise SettingsError(
            f"{task.name} has no observation {', '.join(unknown)}; set "
            "config.env.options.obs_keys, in the configuration file, to some of "
            f"{', '.join(filter(None, parts)) or '() (it observes no dictionary)'}."
        )
    for name in task.obs_keys or parts:
        space = parts[name]
        if not isinstance(space, spaces.Box) or len(space.shape) > 1:
            raise SettingsError(
                f"{task.name} observes {name or 'a'} {space}, but only vectors can be "
                "a state; choose others with env.options.obs_keys, or wrap the "
                "environment in your own function."
            )
    if not isinstance(env.action_space, spaces.Box):
        raise SettingsError(
            f"{task.name} takes actions from {env.action_space}; policies here are "
            "continuous, so use an environment whose action space is a Box."
        )
    return parts

"""Make environments from a configuration."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dppo_jax.envs import randomize
from dppo_jax.envs.adapters import is_host, make_host_task
from dppo_jax.envs.adapters.host import host_vec_env
from dppo_jax.envs.core import vectorize
from dppo_jax.envs.outside import apply_wrapper
from dppo_jax.envs.quarantine import quarantine
from dppo_jax.envs.tasks import make_task, takes_option
from dppo_jax.envs.wrappers import (
    action_notes,
    chunk_actions,
    normalize,
    stack_observations,
    time_limit,
)
from dppo_jax.errors import SettingsError
from dppo_jax.normalize import Normalizer, normalize_action
from dppo_jax.types import Env, VecEnv

# The argument of tasks for `env.randomization.initial_state`.
_INITIAL = "initial_noise"


def default_config() -> ConfigDict:
    """Settings of an environment."""
    config = ConfigDict()
    config.task = ""  # see docs/environments.md
    # "auto", "mujoco", "mjx", or "mjx-warp", which may state its space for one
    # simulation: "mjx-warp:contacts=64,constraints=256".
    config.engine = "auto"
    config.options = ConfigDict()  # keyword arguments of the task
    config.max_steps = 100  # control steps until the time limit
    # What follows the time limit. False: an episode could have gone on, so learning
    # expects the rewards that the critic predicts for its last observation. True:
    # nothing, so the limit is a part of the task.
    config.limit_terminates = False
    config.history = 1  # To
    # User functions Env -> Env that wrap the task in task units, the first one
    # innermost, by name: `module:function` or `path/to/file.py:function`.
    config.wrappers = ()
    config.executed = placeholder(int)  # actions of a chunk; None: all of them
    # Other dynamics, delays and noise in the roll-outs of training and evaluation
    # (domain randomisation). Demonstrations are collected without.
    config.randomization = randomize.default_config()
    return config


def make_single(config: ConfigDict) -> Env:
    """Make the task with `env.wrappers`, in task units and not vectorised.

    Raises:
        SettingsError: a task that runs in host processes, or a task or wrapper that
            cannot be made.
    """
    return _make_wrapped(config, _options(config))


def _make_wrapped(config: ConfigDict, options: Mapping[str, Any]) -> Env:
    env = make_task(config.task, engine=config.engine, **options)
    for wrapper in config.wrappers:
        env = apply_wrapper(env, wrapper)
    return env


def _make_disturbed(config: ConfigDict) -> Env:
    """As `make_single`, with noise on the initial state if `env.randomization` has it.

    Only the task can add it, because observations and more follow from that state.
    """
    randomize.check_config(config.randomization)
    spread = config.randomization.initial_state
    if not spread:
        return make_single(config)
    if not takes_option(config.task, _INITIAL):
        raise SettingsError(
            f"env.randomization.initial_state={spread} is passed to the task as "
            f"{_INITIAL}, which {config.task} does not take; leave it at 0, or add the "
            "argument to a task of yours."
        )
    return _make_wrapped(config, {**_options(config), _INITIAL: spread})


def make_env(
    config: ConfigDict,
    *,
    normalizer: Normalizer,
    chunk: int,
    num_envs: int,
    trace: Sequence[str] = (),
) -> VecEnv:
    """Make the vectorised, normalised, chunked environment of a configuration.

    Args:
        chunk: Ta, actions that the policy predicts.
        num_envs: B, environments that run at once.
        trace: metrics to report at every control step.

    Raises:
        SettingsError: invalid settings, which the message names.
    """
    executed = chunk if config.executed is None else config.executed
    if not 1 <= executed <= chunk:
        raise SettingsError(
            f"env.executed={executed} must lie between 1 and the {chunk} actions that "
            "the policy predicts (model.chunk)."
        )
    if is_host(config.task):
        if config.wrappers:
            raise SettingsError(
                f"env.wrappers={tuple(config.wrappers)} do not work with {config.task},"
                " which runs in host processes; remove them, and wrap the simulator "
                "itself."
            )
        randomize.check_off(config.randomization, config.task)
        return host_vec_env(
            make_host_task(config.task, engine=config.engine, **_options(config)),
            num_envs,
            chunk=executed,
            history=config.history,
            max_steps=config.max_steps,
            limit_terminates=config.limit_terminates,
            normalizer=normalizer,
            trace=trace,
        )
    single = _make_disturbed(config)
    env = normalize(quarantine(single), normalizer)
    idle = normalize_action(normalizer, np.zeros(env.action_shape, np.float32))
    env = randomize.randomize(env, config.randomization, idle)
    env = time_limit(env, config.max_steps, terminates=config.limit_terminates)
    env = stack_observations(env, config.history)
    env = chunk_actions(env, executed, trace)
    notes = action_notes(config.task, normalizer, single.action_range)
    return vectorize(env, num_envs)._replace(notes=notes)


def _options(config: ConfigDict) -> ConfigDict:
    """The arguments of the task, of which `engine` has a setting of its own."""
    if "engine" in config.options:
        raise SettingsError(
            f"env.options.engine={config.options.engine!r}: the engine is no option of "
            f"a task; set env.engine={config.options.engine!r} instead."
        )
    return config.options

"""From a configuration to the environment that algorithms see."""

from collections.abc import Sequence

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dppo_jax.envs.adapters import is_host, make_host_task
from dppo_jax.envs.adapters.host import host_vec_env
from dppo_jax.envs.core import vectorize
from dppo_jax.envs.outside import apply_wrapper
from dppo_jax.envs.tasks import make_task
from dppo_jax.envs.wrappers import (
    chunk_actions,
    normalize,
    stack_observations,
    time_limit,
)
from dppo_jax.errors import SettingsError
from dppo_jax.normalize import Normalizer
from dppo_jax.types import Env, VecEnv


def default_config() -> ConfigDict:
    """What an environment is made of."""
    config = ConfigDict()
    config.task = ""  # of dppo_jax, or `library:name`, see docs/environments.md
    config.engine = "auto"
    config.options = ConfigDict()  # keyword arguments of the task
    config.max_steps = 100  # control steps until the time limit
    config.history = 1  # To
    # Functions Env -> Env around the task, in task units, the first one innermost: a
    # reward of one's own, for example. `module:function` or `path/to/file.py:function`.
    config.wrappers = ()
    config.executed = placeholder(int)  # actions of a chunk; None: all of them
    return config


def make_single(config: ConfigDict) -> Env:
    """The single environment of a configuration, in task units: task and wrappers.

    Raises:
        SettingsError: a task that runs in host processes, or one or a wrapper that
            cannot be made.
    """
    env = make_task(config.task, engine=config.engine, **config.options)
    for wrapper in config.wrappers:
        env = apply_wrapper(env, wrapper)
    return env


def make_env(
    config: ConfigDict,
    *,
    normalizer: Normalizer,
    chunk: int,
    num_envs: int,
    trace: Sequence[str] = (),
) -> VecEnv:
    """The vectorised, normalised, chunked environment of a configuration.

    Args:
        chunk: Ta, actions that the policy predicts.
        trace: metrics to report at every control step.

    Raises:
        SettingsError: settings that cannot work, by name.
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
                f"env.wrappers={tuple(config.wrappers)}: {config.task} runs in host "
                "processes, where no wrapper of this project reaches; leave them out, "
                "and wrap the simulator itself."
            )
        return host_vec_env(
            make_host_task(config.task, engine=config.engine, **config.options),
            num_envs,
            chunk=executed,
            history=config.history,
            max_steps=config.max_steps,
            normalizer=normalizer,
            trace=trace,
        )
    env = normalize(make_single(config), normalizer)
    env = time_limit(env, config.max_steps)
    env = stack_observations(env, config.history)
    env = chunk_actions(env, executed, trace)
    return vectorize(env, num_envs)

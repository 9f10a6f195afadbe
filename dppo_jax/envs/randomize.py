"""Other dynamics, delays and noise in every episode (domain randomisation).

A policy that has been fine-tuned in many slightly different simulations should also
work in one that is not among them (Tobin et al. 2017, arXiv 1703.06907; of dynamics:
Peng et al. 2018, arXiv 1710.06537). With ranges of a single value the same wrapper
tests a policy, for example with 20 % more mass.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from ml_collections import ConfigDict

from dppo_jax.envs.physics.state import PhysicsState, model_field, override_names
from dppo_jax.errors import SettingsError
from dppo_jax.types import Array, Env, Obs, PyTree, TimeStep

# The fields of a model that are multiplied by each factor. Several fields of one part
# share its factor, so that a body of twice the mass has twice the inertia.
FACTORS: dict[str, tuple[str, ...]] = {
    "mass": ("body_mass", "body_inertia"),
    "friction": ("geom_friction", "pair_friction"),
    "damping": ("dof_damping",),
    "gain": ("actuator_gainprm", "actuator_biasprm"),
}
_NOISES = ("action_noise", "obs_noise")


def default_config() -> ConfigDict:
    """Settings of `randomize`; by default it changes nothing."""
    config = ConfigDict()
    # Factors, each uniform between two numbers and drawn anew for every episode:
    config.mass = (1.0, 1.0)  # of masses and inertias of bodies
    config.friction = (1.0, 1.0)  # of the friction of contacts
    config.damping = (1.0, 1.0)  # of the damping of joints
    config.gain = (1.0, 1.0)  # of the gains of actuators
    config.shared = True  # one factor for all parts; False: each body, ... its own
    config.delay = (0, 0)  # control steps until an action acts; whole numbers, uniform
    # Standard deviations of Gaussian noise in every control step, in units of half the
    # range of an entry in the data, so that 0.01 is half a percent of the range.
    config.action_noise = 0.0  # of all entries of an action
    config.obs_noise = 0.0  # of all entries of the state
    # Noise on the state in which an episode starts, added to that of the task. avoid:
    # at most so many metres in x and y; the runners: at most so much on every position
    # and velocity; the arms: standard deviation of the angles of their joints.
    config.initial_state = 0.0
    return config


class RandomizedState(NamedTuple):
    """State of the wrapper.

    obs: with noise.
    key: of the noise of the next step.
    waiting: [D, Da] the last actions, which may not have acted yet, newest last; D is
        the longest delay.
    delay: [] steps.
    """

    env: Any
    obs: Obs
    key: Array
    waiting: Array
    delay: Array


def randomize(env: Env, config: ConfigDict, idle: Array | np.ndarray) -> Env:
    """Randomise every episode of `env` as `config` says.

    Args:
        env: observations and actions are normalised.
        config: `default_config` with changes.
        idle: [Da] the action that is executed until the first delayed one.

    Returns:
        `env` itself if `config` changes nothing.

    Raises:
        SettingsError: a setting that cannot work, or an environment whose model is not
            known (`Env.physics`) or lacks what a factor is of.
    """
    check_config(config)
    changed = [name for name in FACTORS if tuple(config[name]) != (1.0, 1.0)]
    shortest, longest = config.delay
    if not is_on(config):
        return env
    fields = _fields(env, changed)

    def noisy(key: Array, obs: Obs) -> Obs:
        if not config.obs_noise:
            return obs
        noise = jax.random.normal(key, obs["state"].shape)
        return {**obs, "state": obs["state"] + config.obs_noise * noise}

    def reset(key: Array) -> RandomizedState:
        env_key, factor_key, delay_key, obs_key, key = jax.random.split(key, 5)
        state = env.reset(env_key)
        if changed:
            own = _draw(factor_key, config, fields)
            state = jax.tree.map(
                lambda x: env.physics.override(x, own) if _is_physics(x) else x,
                state,
                is_leaf=_is_physics,
            )
        return RandomizedState(
            env=state,
            obs=noisy(obs_key, state.obs),
            key=key,
            waiting=jnp.broadcast_to(jnp.asarray(idle), (longest, *env.action_shape)),
            delay=jax.random.randint(delay_key, (), shortest, longest + 1),
        )

    def step(state: RandomizedState, action: Array) -> tuple[RandomizedState, TimeStep]:
        action_key, obs_key, key = jax.random.split(state.key, 3)
        line = jnp.concatenate([state.waiting, action[None]])
        action = line[longest - state.delay]
        if config.action_noise:
            noise = jax.random.normal(action_key, action.shape)
            action = action + config.action_noise * noise
        env_state, outcome = env.step(state.env, action)
        obs = noisy(obs_key, outcome.obs)
        state = RandomizedState(env_state, obs, key, line[1:], state.delay)
        return state, outcome._replace(obs=obs)

    return env._replace(reset=reset, step=step)


def is_on(config: ConfigDict) -> bool:
    """Whether valid settings change anything but the initial state, see `build`."""
    return (
        any(tuple(config[name]) != (1.0, 1.0) for name in FACTORS)
        or config.delay[1] > 0
        or any(config[name] > 0 for name in _NOISES)
    )


def check_off(config: ConfigDict, task: str) -> None:
    """Raise a SettingsError if `config` randomises a task that cannot be randomised."""
    check_config(config)
    if is_on(config) or config.initial_state > 0:
        raise SettingsError(
            f"env.randomization does not work with {task}, which runs in host "
            "processes; leave it out, and randomise the simulator itself."
        )


def check_config(config: ConfigDict) -> None:
    """Raise a SettingsError that names an invalid setting."""
    for name in FACTORS:
        low, high = _two(config, name, (int, float))
        if not 0 < low <= high < math.inf:
            raise SettingsError(
                f"env.randomization.{name}={(low, high)} must be two positive numbers, "
                "the lower one first; (1.0, 1.0) changes nothing."
            )
    shortest, longest = _two(config, "delay", (int,))
    if not 0 <= shortest <= longest:
        raise SettingsError(
            f"env.randomization.delay={(shortest, longest)} must be two numbers of "
            "control steps, the lower one first; (0, 0) delays nothing."
        )
    for name in (*_NOISES, "initial_state"):
        if not 0 <= config[name] < math.inf:
            raise SettingsError(
                f"env.randomization.{name}={config[name]} must be 0 or positive."
            )


def _two(config: ConfigDict, name: str, types: tuple[type, ...]) -> tuple[Any, Any]:
    value = tuple(config[name])
    if len(value) != 2 or not all(type(x) in types for x in value):
        kind = "whole numbers" if float not in types else "numbers"
        raise SettingsError(
            f"env.randomization.{name}={value} must be two {kind}, the ends of a range."
        )
    return value


def _is_physics(x: Any) -> bool:
    return isinstance(x, PhysicsState)


def _fields(env: Env, changed: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """Factor -> fields of the model that it multiplies, and their values."""
    if not changed:
        return {}
    if env.physics is None:
        raise SettingsError(
            f"env.randomization.{changed[0]} changes a MuJoCo model, but this task "
            "does not tell its own; return Env(..., physics=make_physics(...)) from a "
            "task of yours, or set only delays and noise."
        )
    state = jax.eval_shape(env.reset, jax.random.key(0))
    inside = filter(_is_physics, jax.tree.leaves(state, is_leaf=_is_physics))
    taken = {name for physics in inside for name in physics.overrides}
    model: mujoco.MjModel = env.physics.model
    possible = override_names(model)
    found = {}
    for factor in changed:
        names = [name for name in FACTORS[factor] if name in possible]
        found[factor] = {
            name: np.asarray(model_field(model, name), np.float32) for name in names
        }
        if not any(values.any() for values in found[factor].values()):
            raise SettingsError(
                f"env.randomization.{factor}: this model has no "
                f"{' or '.join(FACTORS[factor])} other than 0; leave it at (1.0, 1.0)."
            )
        if taken & set(names):
            raise SettingsError(
                f"env.randomization.{factor}: the task itself overrides "
                f"{', '.join(sorted(taken & set(names)))}; randomise it there, or "
                "leave this at (1.0, 1.0)."
            )
    return found


def _draw(
    key: Array, config: ConfigDict, fields: dict[str, dict[str, np.ndarray]]
) -> PyTree:
    """Draw the fields of the model of one episode."""
    own = {}
    for index, (factor, values) in enumerate(fields.items()):
        low, high = config[factor]
        factor_key = jax.random.fold_in(key, index)
        for name, value in values.items():
            # Fields of equal length are of the same parts, such as bodies.
            size = 1 if config.shared else len(value)
            scale = jax.random.uniform(
                jax.random.fold_in(factor_key, size), (size,), minval=low, maxval=high
            )
            own[name] = value * scale.reshape(-1, *(1,) * (value.ndim - 1))
    return own

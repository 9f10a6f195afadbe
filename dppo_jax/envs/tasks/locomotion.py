"""Gymnasium's planar runners: Hopper, Walker2d and HalfCheetah.

The tasks have the physics of Gymnasium's v4 environments, and therefore of the v2
environments of the D4RL data sets: XML files, frame skip, observation, reward, health
limits and reset noise. From the same state, trajectories on C MuJoCo are the same bit
for bit. MJX computes in float32.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.envs.physics import (
    PhysicsState,
    compile_model,
    make_physics,
    resolve_engine,
)
from dppo_jax.errors import SettingsError
from dppo_jax.types import Array, Env, Obs, TimeStep, View

VERSIONS = ("v4", "v5")
MARGINS = ("sum", "max")
MAX_STEPS = 1000

# Line-search iterations of MJX. C MuJoCo keeps the limit of the files, 50, because it
# stops earlier.
MJX_LINE_SEARCH_ITERATIONS = 8


class Runner(NamedTuple):
    """Settings of one runner, equal in v4 and v5 of gymnasium.envs.mujoco.

    files: the model's file by version.
    num_substeps: simulator steps per control step (Gymnasium's frame_skip).
    control_cost: weight of the squared action.
    healthy_reward: per control step.
    reset_noise: half-width of the uniform noise on qpos and qvel at the start.
    normal_velocities: the noise on qvel is Gaussian with standard deviation
        `reset_noise` instead.
    max_velocity: observed velocities are clipped to +- this.
    is_healthy: (qpos, qvel) -> bool; an unhealthy state ends the episode.
    mjx_iterations: iterations of MJX's constraint solver, all of which run for the
        whole batch; as many as C MuJoCo, whose limit is 100, was observed to need.
    """

    files: dict[str, str]
    num_substeps: int
    control_cost: float
    healthy_reward: float
    reset_noise: float
    normal_velocities: bool
    max_velocity: float
    is_healthy: Callable[[Array, Array], Array]
    mjx_iterations: int


def hopper_is_healthy(qpos: Array, qvel: Array) -> Array:
    """Torso above 0.7 m and within 0.2 rad of upright; |qpos[2:]| and |qvel| < 100."""
    bounded = jnp.all(jnp.abs(jnp.concatenate([qpos[2:], qvel])) < 100.0)
    return bounded & (qpos[1] > 0.7) & (jnp.abs(qpos[2]) < 0.2)


def walker2d_is_healthy(qpos: Array, qvel: Array) -> Array:
    """Torso between 0.8 m and 2 m and within 1 rad of upright."""
    height, angle = qpos[1], qpos[2]
    return (0.8 < height) & (height < 2.0) & (jnp.abs(angle) < 1.0)


def halfcheetah_is_healthy(qpos: Array, qvel: Array) -> Array:
    """Always True, as in Gymnasium."""
    return jnp.bool_(True)


RUNNERS = {
    # One leg with a foot, three motors.
    "hopper": Runner(
        files={"v4": "hopper.xml", "v5": "hopper.xml"},
        num_substeps=4,
        control_cost=1e-3,
        healthy_reward=1.0,
        reset_noise=5e-3,
        normal_velocities=False,
        max_velocity=10.0,
        is_healthy=hopper_is_healthy,
        mjx_iterations=4,
    ),
    # Two legs with feet, six motors.
    "walker2d": Runner(
        # In v5 both feet have friction 1.9; in v4 one has 0.9.
        files={"v4": "walker2d.xml", "v5": "walker2d_v5.xml"},
        num_substeps=4,
        control_cost=1e-3,
        healthy_reward=1.0,
        reset_noise=5e-3,
        normal_velocities=False,
        max_velocity=10.0,
        is_healthy=walker2d_is_healthy,
        # Contacts of both feet with several joint limits need up to 7 iterations.
        mjx_iterations=8,
    ),
    # Two legs and a long body, six motors.
    "halfcheetah": Runner(
        files={"v4": "half_cheetah.xml", "v5": "half_cheetah.xml"},
        num_substeps=5,
        control_cost=0.1,
        healthy_reward=0.0,
        reset_noise=0.1,
        normal_velocities=True,
        max_velocity=np.inf,
        is_healthy=halfcheetah_is_healthy,
        mjx_iterations=4,
    ),
}


class LocomotionState(NamedTuple):
    """State of the task.

    obs: `{"state": [nq - 1 + nv]}`, qpos without x, then clipped qvel.
    """

    physics: PhysicsState
    obs: Obs


def gymnasium_xml(name: str) -> str:
    """Read the MuJoCo model `name` from the files of the package gymnasium.

    The package is not imported, because its environments are not needed.
    """
    spec = importlib.util.find_spec("gymnasium")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "The locomotion tasks read their models from the package gymnasium; run: "
            "pip install gymnasium."
        )
    folder = Path(spec.origin).parent / "envs" / "mujoco" / "assets"
    return (folder / name).read_text(encoding="utf-8")


def mjcf(name: str, *, version: str = "v4", margins: str = "sum") -> str:
    """Read Gymnasium's model of a runner.

    All geoms of Hopper have a contact margin of 1 mm. The current MuJoCo adds the
    margins of two geoms, but the MuJoCo that recorded the well-known data sets used the
    larger one.

    Args:
        name: one of `RUNNERS`.
        version: Gymnasium's version of the task, one of `VERSIONS`.
        margins: "sum" uses the file unchanged, as Gymnasium does. "max", for Hopper
            only, halves each margin, so that contacts are those of the old MuJoCo.

    Raises:
        SettingsError: an unknown `version` or `margins`, or "max" for a model without a
            margin of 1 mm.
    """
    if version not in VERSIONS:
        raise SettingsError(
            f"version={version!r} is unknown; choose one of {list(VERSIONS)}, "
            "Gymnasium's versions of the task."
        )
    if margins not in MARGINS:
        raise SettingsError(f"margins={margins!r} is unknown; use one of {MARGINS}.")
    xml = gymnasium_xml(RUNNERS[name].files[version])
    if margins == "sum":
        return xml
    margin = 'margin="0.001"'
    if margin not in xml:
        raise SettingsError(
            f"margins='max' halves margins of 1 mm, but {name} has none; use 'sum'."
        )
    return xml.replace(margin, 'margin="0.0005"')


def make_runner(
    name: str,
    *,
    engine: str = "auto",
    version: str = "v4",
    margins: str = "sum",
    initial_noise: float = 0.0,
) -> Env:
    """Make the task of one runner; Gymnasium's limit is `time_limit(env, MAX_STEPS)`.

    Action [nu]: motor commands, 3 for Hopper and 6 for the others. As in Gymnasium, the
    model clips them to its control range, but the control cost uses the unclipped ones.
    Observation `{"state": [nq - 1 + nv]}`: qpos without x, clipped qvel; 11 entries for
    Hopper and 17 for the others.
    Reward: x_velocity + reward for being healthy - control_cost |action|^2.
    Metrics, all of the current control step: `reward_forward`, `reward_survive`,
    `reward_ctrl` (their sum is the reward), `x_velocity` in m/s, the mean over the
    control step, `x_position` in m, `healthy`.

    Args:
        name: one of `RUNNERS`.
        engine: physics engine; "auto" is C MuJoCo on CPU, where it is several times
            faster than MJX on jointed robots.
        version: "v4" gives the healthy reward also for the step that ends the episode,
            "v5" does not; see also `mjcf`.
        margins: see `mjcf`.
        initial_noise: added to `Runner.reset_noise`.

    Raises:
        SettingsError: an engine that cannot run here, or as `mjcf`.
    """
    runner = RUNNERS[name]
    engine = resolve_engine(engine, cpu_engine="mujoco")
    model = compile_model(mjcf(name, version=version, margins=margins))
    if engine != "mujoco":
        model.opt.iterations = runner.mjx_iterations
        model.opt.ls_iterations = MJX_LINE_SEARCH_ITERATIONS
    physics = make_physics(model, runner.num_substeps, engine)
    period = model.opt.timestep * runner.num_substeps
    qpos0 = jnp.asarray(model.qpos0, jnp.float32)

    def observe(physics_state: PhysicsState) -> Obs:
        limit = runner.max_velocity
        qvel = jnp.clip(physics_state.qvel, -limit, limit)
        return {"state": jnp.concatenate([physics_state.qpos[1:], qvel])}

    def reset(key: Array) -> LocomotionState:
        qpos_key, qvel_key = jax.random.split(key)
        noise = runner.reset_noise + initial_noise
        qpos = jax.random.uniform(qpos_key, (model.nq,), minval=-noise, maxval=noise)
        if runner.normal_velocities:
            qvel = noise * jax.random.normal(qvel_key, (model.nv,))
        else:
            qvel = jax.random.uniform(
                qvel_key, (model.nv,), minval=-noise, maxval=noise
            )
        physics_state = physics.reset(qpos0 + qpos, qvel)
        return LocomotionState(physics_state, observe(physics_state))

    def step(state: LocomotionState, action: Array) -> tuple[LocomotionState, TimeStep]:
        chex.assert_shape(action, (model.nu,))
        now = physics.step(state.physics, action)
        x_velocity = now.displacement[0] / period
        healthy = runner.is_healthy(now.qpos, now.qvel).astype(jnp.float32)
        survive = runner.healthy_reward * (healthy if version == "v5" else 1.0)
        control = -runner.control_cost * jnp.sum(jnp.square(action))
        obs = observe(now)
        return LocomotionState(now, obs), TimeStep(
            obs=obs,
            reward=x_velocity + survive + control,
            terminated=1 - healthy,
            truncated=jnp.float32(0),
            metrics={
                "reward_forward": x_velocity,
                "reward_survive": jnp.float32(survive),
                "reward_ctrl": control,
                "x_velocity": x_velocity,
                "x_position": now.qpos[0],
                "healthy": healthy,
            },
            trace={"qpos": now.qpos},
        )

    return Env(
        reset=reset,
        step=step,
        obs_shape={"state": (model.nq - 1 + model.nv,)},
        action_shape=(model.nu,),
        max_steps=None,
        view=View(model, float(period), "track"),
        action_range=tuple(model.actuator_ctrlrange.T),
        physics=physics,
    )

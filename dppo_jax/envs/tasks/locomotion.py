"""What the planar runners of Gymnasium share: model files, reward, resets, engines.

The tasks are physically those of Gymnasium's v4 environments (and hence of the v2
environments behind the D4RL data sets): its own XML files, frame skip, observation,
reward, health limits and reset noise. On C MuJoCo trajectories are the same bit for
bit from the same state; MJX follows them to float32.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dppo_jax.envs.physics import (
    PhysicsState,
    compile_model,
    make_physics,
    resolve_engine,
)
from dppo_jax.types import Array, Env, Obs, TimeStep

VERSIONS = ("v4", "v5")
MAX_STEPS = 1000

# Line-search iterations of MJX; C MuJoCo keeps the files' 50, of which it needs fewer.
MJX_LINE_SEARCH_ITERATIONS = 8


class Runner(NamedTuple):
    """What sets one runner apart.

    num_substeps: simulator steps per control step (Gymnasium's frame_skip).
    control_cost: weight of the squared action.
    healthy_reward: per control step.
    reset_noise: half-width of the uniform noise on qpos at the start.
    normal_velocities: whether qvel starts with Gaussian noise of that spread
        instead of uniform noise.
    max_velocity: observed velocities are clipped to +- this.
    is_healthy: (qpos, qvel) -> bool; a state without health ends the episode.
    mjx_iterations: of the constraint solver in MJX, which runs all of them for the
        whole batch; as many as C MuJoCo, which may run 100, was seen to need.
    """

    num_substeps: int
    control_cost: float
    healthy_reward: float
    reset_noise: float
    normal_velocities: bool
    max_velocity: float
    is_healthy: Callable[[Array, Array], Array]
    mjx_iterations: int


class LocomotionState(NamedTuple):
    """obs: `{"state": [nq - 1 + nv]}`, qpos without x, then qvel."""

    physics: PhysicsState
    obs: Obs


def gymnasium_xml(name: str) -> str:
    """The MuJoCo model `name` that ships with the package gymnasium.

    The package is located but not imported: its environments are not needed.
    """
    spec = importlib.util.find_spec("gymnasium")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "The locomotion tasks read their models from the package gymnasium; "
            "pip install gymnasium."
        )
    folder = Path(spec.origin).parent / "envs" / "mujoco" / "assets"
    return (folder / name).read_text(encoding="utf-8")


def check_version(version: str) -> None:
    """Raises ValueError unless `version` is one of `VERSIONS`."""
    if version not in VERSIONS:
        raise ValueError(
            f"version={version!r} is unknown; choose one of {list(VERSIONS)}, "
            "Gymnasium's versions of the task."
        )


def make_runner(runner: Runner, xml: str, *, engine: str, version: str) -> Env:
    """The task of one runner; `time_limit(env, MAX_STEPS)` is Gymnasium's limit.

    Action [nu]: motor commands. As in Gymnasium the model clips them to its control
    range, while the control cost is that of the action itself.
    Observation `{"state": [nq - 1 + nv]}`: qpos without x, clipped qvel.
    Reward: x_velocity + reward for being healthy - control_cost |action|^2.
    Metrics, all of the present control step: `reward_forward`, `reward_survive`,
    `reward_ctrl` (these add up to the reward), `x_velocity` in m/s, the mean over the
    control step, `x_position` in m, `healthy`.

    Args:
        xml: the model.
        engine: physics engine; "auto" is C MuJoCo on CPU, where it is several times
            faster than MJX on jointed robots.
        version: "v4" pays the healthy reward for the step that ends the episode
            too, "v5" does not.

    Raises:
        ValueError: for an unknown version or an unusable engine.
    """
    check_version(version)
    engine = resolve_engine(engine, cpu_engine="mujoco")
    model = compile_model(xml)
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
        noise = runner.reset_noise
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
            trace={},
        )

    return Env(
        reset=reset,
        step=step,
        obs_shape={"state": (model.nq - 1 + model.nv,)},
        action_shape=(model.nu,),
        max_steps=None,
    )

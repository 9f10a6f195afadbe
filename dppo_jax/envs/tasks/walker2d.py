"""Gymnasium's Walker2d: two legs with feet, six motors, walk forward.

Limits and weights are those of gymnasium.envs.mujoco.walker2d_v4 (and v5).
"""

import jax.numpy as jnp

from dppo_jax.envs.tasks.locomotion import (
    Runner,
    check_version,
    gymnasium_xml,
    make_runner,
)
from dppo_jax.types import Array, Env

NUM_SUBSTEPS = 4


def mjcf(version: str = "v4") -> str:
    """Gymnasium's model; in v5 both feet have friction 1.9, before one had 0.9."""
    check_version(version)
    return gymnasium_xml("walker2d_v5.xml" if version == "v5" else "walker2d.xml")


def is_healthy(qpos: Array, qvel: Array) -> Array:
    """Torso between 0.8 m and 2 m and within 1 rad of upright."""
    height, angle = qpos[1], qpos[2]
    return (0.8 < height) & (height < 2.0) & (jnp.abs(angle) < 1.0)


def make_walker2d(*, engine: str = "auto", version: str = "v4") -> Env:
    """Walker2d: action [6] in [-1, 1], observation [17]; see `make_runner`."""
    runner = Runner(
        num_substeps=NUM_SUBSTEPS,
        control_cost=1e-3,
        healthy_reward=1.0,
        reset_noise=5e-3,
        normal_velocities=False,
        max_velocity=10.0,
        is_healthy=is_healthy,
        # Both feet and several joint limits at once take up to 7; 4 are not enough.
        mjx_iterations=8,
    )
    return make_runner(runner, mjcf(version), engine=engine, version=version)

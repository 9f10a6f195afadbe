"""Gymnasium's HalfCheetah: two legs and a body, six motors, run forward.

Weights are those of gymnasium.envs.mujoco.half_cheetah_v4; v5 has the same.
"""

import jax.numpy as jnp
import numpy as np

from dppo_jax.envs.tasks.locomotion import (
    Runner,
    check_version,
    gymnasium_xml,
    make_runner,
)
from dppo_jax.types import Array, Env

NUM_SUBSTEPS = 5


def mjcf(version: str = "v4") -> str:
    """Gymnasium's model; both versions have the same."""
    check_version(version)
    return gymnasium_xml("half_cheetah.xml")


def is_healthy(qpos: Array, qvel: Array) -> Array:
    """Always: a cheetah on its back may get up again."""
    return jnp.bool_(True)


def make_halfcheetah(*, engine: str = "auto", version: str = "v4") -> Env:
    """HalfCheetah: action [6] in [-1, 1], observation [17]; see `make_runner`."""
    runner = Runner(
        num_substeps=NUM_SUBSTEPS,
        control_cost=0.1,
        healthy_reward=0.0,
        reset_noise=0.1,
        normal_velocities=True,
        max_velocity=np.inf,
        is_healthy=is_healthy,
        mjx_iterations=4,
    )
    return make_runner(runner, mjcf(version), engine=engine, version=version)

"""Gymnasium's Hopper: one leg with a foot, three motors, hop forward.

Limits and weights are those of gymnasium.envs.mujoco.hopper_v4 (and v5).
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
MARGINS = ("sum", "max")


def mjcf(version: str = "v4", margins: str = "sum") -> str:
    """Gymnasium's model; both versions have the same.

    All its geoms have a contact margin of 1 mm. MuJoCo adds the margins of two geoms
    today, but took the larger one when the known data sets were recorded.

    Args:
        margins: "sum" leaves the file as it is, which is what Gymnasium does with the
            MuJoCo of today; "max" halves each margin, and so brings back the contacts
            of old.

    Raises:
        ValueError: for an unknown version or treatment of margins.
    """
    check_version(version)
    if margins not in MARGINS:
        raise ValueError(f"margins={margins!r} is unknown; use one of {MARGINS}.")
    xml = gymnasium_xml("hopper.xml")
    return xml.replace('margin="0.001"', 'margin="0.0005"') if margins == "max" else xml


def is_healthy(qpos: Array, qvel: Array) -> Array:
    """Torso above 0.7 m and within 0.2 rad of upright, nothing beyond +-100."""
    bounded = jnp.all(jnp.abs(jnp.concatenate([qpos[2:], qvel])) < 100.0)
    return bounded & (qpos[1] > 0.7) & (jnp.abs(qpos[2]) < 0.2)


def make_hopper(
    *, engine: str = "auto", version: str = "v4", margins: str = "sum"
) -> Env:
    """Hopper: action [3] in [-1, 1], observation [11]; see `make_runner` and `mjcf`."""
    runner = Runner(
        num_substeps=NUM_SUBSTEPS,
        control_cost=1e-3,
        healthy_reward=1.0,
        reset_noise=5e-3,
        normal_velocities=False,
        max_velocity=10.0,
        is_healthy=is_healthy,
        mjx_iterations=4,
    )
    return make_runner(runner, mjcf(version, margins), engine=engine, version=version)

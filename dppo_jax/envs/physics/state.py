"""What one simulation consists of, and what of it a task may change."""

from typing import NamedTuple

import mujoco
import numpy as np

from dppo_jax.types import Array, PyTree

# Fields of MjModel that every engine reads anew in every step. Absent are those that
# compiling has drawn conclusions from: sizes and frames of geoms, frames of inertia.
OVERRIDES = (
    "actuator_biasprm",
    "actuator_ctrlrange",
    "actuator_forcerange",
    "actuator_gainprm",
    "actuator_gear",
    "body_inertia",
    "body_mass",
    "body_pos",
    "body_quat",
    "dof_armature",
    "dof_damping",
    "dof_frictionloss",
    "eq_data",
    "eq_solimp",
    "eq_solref",
    "geom_friction",
    "geom_solimp",
    "geom_solref",
    "jnt_range",
    "jnt_stiffness",
    "opt.gravity",
    "pair_friction",
    "pair_solimp",
    "pair_solref",
)

# The overrides that the mass matrix at qpos0 depends on, and with it the constants that
# MuJoCo derives when it compiles a model.
INERTIAL = {"body_mass", "body_inertia", "body_pos", "body_quat", "dof_armature"}

# Fields of MjData that a step may change: those that stay until they are changed again,
# and those that hold for this one step, as ctrl does.
LASTING = ("eq_active", "mocap_pos", "mocap_quat")
MOMENTARY = ("xfrc_applied", "qfrc_applied")
CHANGES = ("qpos", "qvel", *LASTING, *MOMENTARY)


class PhysicsState(NamedTuple):
    """State of one simulation; tasks read all but `raw`.

    qpos: [nq] float32.
    qvel: [nv] float32.
    sensordata: [nsensordata] float32, at this very state.
    displacement: [nq] float32, change of qpos over the last step, 0 after a reset.
        C MuJoCo subtracts before it rounds, so a velocity taken from it is as exact
        metres from the origin as at the origin; rounded positions would not be. A qpos
        that was given to the step is where the change begins.
    raw: what the engine needs to continue exactly: for MJX a dict of its fields, for
        C MuJoCo the float64 integration state as bits, uint32 [2 * nstate].
    overrides: fields of the model that are this simulation's own, by name, from its
        reset to its end; empty unless `reset` was given some. For MJX also the
        constants that follow from them.
    """

    qpos: Array
    qvel: Array
    sensordata: Array
    displacement: Array
    raw: PyTree
    overrides: dict[str, Array]


def override_names(model: mujoco.MjModel) -> list[str]:
    """What `Physics.reset` can override in `model`."""
    names = [name for name in OVERRIDES if model_field(model, name).size]
    if model.ntendon:
        # Lengths of tendons at rest would have to follow.
        names = [name for name in names if name not in ("body_pos", "body_quat")]
    return names


def change_names(model: mujoco.MjModel) -> list[str]:
    """What `Physics.step` can change in the MjData of `model`."""
    data = mujoco.MjData(model)
    return [name for name in CHANGES if getattr(data, name).size]


def model_field(model: mujoco.MjModel, name: str) -> np.ndarray:
    """The array that is called `name`, "opt." leading to the options."""
    owner = model.opt if name.startswith("opt.") else model
    return getattr(owner, name.removeprefix("opt."))

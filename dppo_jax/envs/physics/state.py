"""The state of one simulation, and the fields that a task may change."""

from typing import NamedTuple

import mujoco
import numpy as np

from dppo_jax.types import Array, PyTree

# Fields of MjModel that every engine reads in every step. Sizes and frames of geoms and
# frames of inertia are missing, because MuJoCo uses them only when it compiles a model.
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

# The overrides that change the mass matrix at qpos0, and therefore the constants that
# MuJoCo derives when it compiles a model.
INERTIAL = {"body_mass", "body_inertia", "body_pos", "body_quat", "dof_armature"}

# Fields of MjData that a step may change. LASTING ones stay until they are changed
# again; MOMENTARY ones act during one step only, like ctrl.
LASTING = ("eq_active", "mocap_pos", "mocap_quat")
MOMENTARY = ("xfrc_applied", "qfrc_applied")
CHANGES = ("qpos", "qvel", *LASTING, *MOMENTARY)


# Entry of `raw` on the engine `mjx-warp`: where simulations lacked space, see `full`.
FULL = "full"


class PhysicsState(NamedTuple):
    """State of one simulation; tasks read all fields except `raw`.

    qpos: [nq] float32.
    qvel: [nv] float32.
    sensordata: [nsensordata] float32, of this state.
    displacement: [nq] float32, change of qpos over the last step, 0 after a reset; if
        the step got a `qpos`, the change from there. C MuJoCo subtracts in float64, so
        a velocity computed from it is exact at any distance from the origin. The
        difference of two rounded positions would not be.
    raw: what the engine needs to continue exactly: for MJX a dict of its fields, which
        for `mjx-warp` also has `FULL`, for C MuJoCo the float64 integration state as
        bits, uint32 [2 * nstate].
    overrides: fields of this simulation's own model, by name, from one reset to the
        next; empty if `reset` got none. For MJX also the constants derived from them.
    """

    qpos: Array
    qvel: Array
    sensordata: Array
    displacement: Array
    raw: PyTree
    overrides: dict[str, Array]


def full(state: PhysicsState) -> dict[str, Array]:
    """Where a simulation has lacked space since its reset, on the engine `mjx-warp`.

    Returns:
        `contacts` and `constraints`, each []: the space for those of one simulation if
        a step needed more and left some out, else 0. Empty for other engines, which
        have space for all.
    """
    return state.raw.get(FULL, {}) if isinstance(state.raw, dict) else {}


def override_names(model: mujoco.MjModel) -> list[str]:
    """Names of the fields of `model` that `Physics.reset` can override."""
    names = [name for name in OVERRIDES if model_field(model, name).size]
    if model.ntendon:
        # These would change the rest lengths of tendons, which are not updated.
        names = [name for name in names if name not in ("body_pos", "body_quat")]
    return names


def change_names(model: mujoco.MjModel) -> list[str]:
    """Names of the fields of MjData of `model` that `Physics.step` can change."""
    data = mujoco.MjData(model)
    return [name for name in CHANGES if getattr(data, name).size]


def model_field(model: mujoco.MjModel, name: str) -> np.ndarray:
    """The array `name` of `model`, or of its options if the name starts with "opt."."""
    owner = model.opt if name.startswith("opt.") else model
    return getattr(owner, name.removeprefix("opt."))

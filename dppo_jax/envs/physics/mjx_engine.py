"""The engines `mjx` and `mjx-warp`: MuJoCo inside the compiled program."""

import contextlib
import copy
import functools
import io
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from dppo_jax.envs.physics.state import (
    FULL,
    INERTIAL,
    LASTING,
    MOMENTARY,
    PhysicsState,
)
from dppo_jax.types import Array

# On import, MJX prints which optional packages are missing.
with contextlib.redirect_stdout(io.StringIO()):
    from mujoco import mjx

# Fields of MJX's Data that a step needs from the previous one, besides qpos and qvel.
# All others are recomputed from these, so an environment state need not hold them.
_MJX_FIELDS = (
    "time",
    "act",
    "history",
    "qacc_warmstart",
    "eq_active",
    "mocap_pos",
    "mocap_quat",
)

# The smallest friction of a joint that is passed to MJX instead of 0, in N or Nm.
_LEAST_FRICTION = 1e-9


def make_mjx(
    model: mujoco.MjModel,
    num_substeps: int,
    *,
    impl: str,
    max_contacts: int | None = None,
    max_constraints: int | None = None,
) -> tuple[
    Callable[..., PhysicsState], Callable[..., PhysicsState], Callable[..., dict]
]:
    """Make `reset` and `step` of `Physics`; here all their arguments are required.

    The third function completes overrides by the constants that MuJoCo derives from
    them, so that a state may have them.

    Args:
        impl: "jax" or "warp".
        max_contacts, max_constraints: see `make_physics`; used only for "warp", where
            all simulations of a `vmap` share the space for contacts.
    """
    room = {}
    if impl == "warp":
        room = {"naconmax": max_contacts, "njmax": max_constraints}
        overflowed = _make_overflowed()
    template = mjx.make_data(model, impl=impl, device=_own_device(), **room)

    @functools.cache
    def template_of(num: int) -> Any:
        """Initial data with space for the contacts of `num` simulations together."""
        if impl == "jax" or num == 1:
            return template
        contacts = num * template._impl.naconmax
        with jax.ensure_compile_time_eval():
            return mjx.make_data(
                model, impl=impl, device=_own_device(), **room | {"naconmax": contacts}
            )

    mjx_model = mjx.put_model(model, impl=impl, device=_own_device())
    if impl == "warp":
        # By default every simulation prints a line in every step that overflows.
        mjx_model = mjx_model.tree_replace({"opt._impl.warn_overflow": 0})
    names = [name for name in _MJX_FIELDS if getattr(template, name).size]

    @functools.cache
    def with_friction() -> tuple[Any, Any]:
        """Make a model and data with constraint rows for friction in every joint.

        MJX makes a row only for joints whose friction is positive in the initial model.
        """
        everywhere = copy.copy(model)
        everywhere.dof_frictionloss[...] = 1.0
        device = _own_device()
        with jax.ensure_compile_time_eval():
            return (
                mjx.put_model(everywhere, impl=impl, device=device),
                mjx.make_data(everywhere, impl=impl, device=device),
            )

    def of(overrides: dict[str, Array], num: int = 1) -> tuple[Any, Any]:
        """Make the model of one of `num` simulations, and its initial data."""
        if impl == "jax" and "dof_frictionloss" in overrides:
            base, data = with_friction()
        else:
            base, data = mjx_model, template_of(num)
        return (base.tree_replace(overrides) if overrides else base), data

    def outcome(
        data: Any, displacement: Array, overrides: dict[str, Array]
    ) -> PhysicsState:
        raw = {name: getattr(data, name) for name in names}
        sensordata = data.sensordata
        if model.nsensor:
            # XLA drops the stages that no sensor reads.
            sensordata = mjx.forward(of(overrides)[0], data).sensordata
        return PhysicsState(
            data.qpos, data.qvel, sensordata, displacement, raw, overrides
        )

    def typed(changes: dict[str, Array]) -> dict[str, Array]:
        return {
            name: value.astype(getattr(template, name).dtype)
            for name, value in changes.items()
        }

    def complete(overrides: dict[str, Array]) -> dict[str, Array]:
        if "dof_frictionloss" in overrides:
            # A constraint row with friction 0 would lock the joint.
            friction = jnp.maximum(overrides["dof_frictionloss"], _LEAST_FRICTION)
            overrides = overrides | {"dof_frictionloss": friction}
        if not INERTIAL & overrides.keys():
            return overrides
        own, own_data = of(overrides)
        if impl == "warp":
            # The stages of "warp" cannot be run one by one, so use those of "jax".
            own = mjx.put_model(model, impl="jax", device=_own_device())
            own = own.tree_replace(overrides)
            own_data = mjx.make_data(model, impl="jax", device=_own_device())
        return overrides | _derive_constants(own, own_data)

    def reset(
        num: int,
        qpos: Array,
        qvel: Array,
        overrides: dict[str, Array],
        changes: dict[str, Array],
    ) -> PhysicsState:
        overrides = complete(overrides)
        _, fresh = of(overrides, num)
        data = fresh.replace(qpos=qpos, qvel=qvel, **typed(changes))
        state = outcome(data, jnp.zeros_like(data.qpos), overrides)
        if impl == "warp":
            full = overflowed(template._impl, jnp.int32(0))
            state = state._replace(raw=state.raw | {FULL: full})
        return state

    def step(
        num: int, state: PhysicsState, ctrl: Array, changes: dict[str, Array]
    ) -> PhysicsState:
        given = typed(changes)
        qpos, qvel = given.get("qpos", state.qpos), given.get("qvel", state.qvel)
        raw = state.raw | {name: given[name] for name in LASTING if name in given}
        acting = {name: given[name] for name in MOMENTARY if name in given}
        acting["ctrl"] = ctrl
        own_model, fresh = of(state.overrides, num)

        def finish(data: Any) -> PhysicsState:
            return outcome(data, data.qpos - qpos, state.overrides)

        if impl == "warp":
            before = raw.pop(FULL)
            data = fresh.replace(qpos=qpos, qvel=qvel, **raw, **acting)
            data = jax.lax.fori_loop(
                0, num_substeps, lambda _, data: mjx.step(own_model, data), data
            )
            now = overflowed(template._impl, data._impl.overflow)
            after = finish(data)
            full = jax.tree.map(jnp.maximum, before, now)
            return after._replace(raw=after.raw | {FULL: full})

        def substep(carry, _):
            qpos, qvel, raw = carry
            data = fresh.replace(qpos=qpos, qvel=qvel, **acting, **raw)
            data = mjx.step(own_model, data)
            raw = {name: getattr(data, name) for name in names}
            return (data.qpos, data.qvel, raw), None

        # Carry only the state through the loop, so that XLA keeps the rest of Data in
        # registers and temporaries and does not copy it in every substep.
        carry, _ = jax.lax.scan(substep, (qpos, qvel, raw), length=num_substeps)
        last_qpos, last_qvel, raw = carry
        return finish(fresh.replace(qpos=last_qpos, qvel=last_qvel, **acting, **raw))

    if impl == "warp":
        return counted(reset), counted(step), complete
    return functools.partial(reset, 1), functools.partial(step, 1), complete


def _make_overflowed() -> Callable[[Any, Array], dict[str, Array]]:
    """Make the function that reads which space of MuJoCo Warp was too small.

    It takes the data of one simulation, which have its space, and the flags that its
    steps have left in `overflow`, which nothing clears until a reset. It returns the
    entry `FULL` of a state.
    """
    from mujoco.mjx.third_party import mujoco_warp

    kind = mujoco_warp.OverflowType
    of_contacts = kind.BROADPHASE | kind.NARROWPHASE | kind.CCD
    of_constraints = kind.NEFC | kind.NJMAX_NNZ

    def overflowed(space: Any, flags: Array) -> dict[str, Array]:
        def full(mask: int, room: int) -> Array:
            return jnp.where(flags & mask, float(room), 0.0)

        return {
            "contacts": full(int(of_contacts), space.naconmax),
            "constraints": full(int(of_constraints), space.njmax),
        }

    return overflowed


def counted(
    function: Callable[..., Any],
    num: int = 1,
    batch: Callable[
        [Callable[..., Any]], Callable[..., Any]
    ] = lambda function: function,
) -> Callable[..., Any]:
    """Tell a function how often `vmap` runs it at once.

    Args:
        function: (number, ...) -> any tree.
        num: the number so far.
        batch: the `vmap`s so far.

    Returns:
        The function of its other arguments; any number of `vmap`s may be around it.
    """

    @jax.custom_batching.custom_vmap
    def call(*args: Any) -> Any:
        return batch(functools.partial(function, num))(*args)

    @call.def_vmap
    def _(axis_size: int, in_batched: Any, *args: Any) -> Any:
        axes = jax.tree.map(lambda batched: 0 if batched else None, tuple(in_batched))

        def more(function: Callable[..., Any]) -> Callable[..., Any]:
            return jax.vmap(batch(function), in_axes=axes)

        results = counted(function, num * axis_size, more)(*args)
        return results, jax.tree.map(lambda _: True, results)

    return call


def _derive_constants(model: Any, data: Any) -> dict[str, Array]:
    """Compute the constants that mj_setConst derives from inertias and MJX reads.

    The inverse weights are diagonals of J M^-1 J^T at qpos0, averaged over the three
    directions of a translation or rotation; constraints scale with them. For a simple
    body that only slides (`body_simple == 2`), MuJoCo uses 1 / mass instead.
    """
    data = data.replace(qpos=model.qpos0)
    for stage in (mjx.kinematics, mjx.com_pos, mjx.camlight, mjx.tendon, mjx.crb):
        data = stage(model, data)
    data = mjx.transmission(model, mjx.tendon_armature(model, data))
    inverse = jnp.linalg.inv(mjx.full_m(model, data))

    def weights(jacobian: Array) -> Array:
        return jnp.einsum("iv,vw,iw->i", jacobian, inverse, jacobian)

    def body_weight(body: Array) -> Array:
        both = mjx.jac(model, data, data.xipos[body], body)
        return jnp.stack([weights(jacobian.T).mean() for jacobian in both])

    body_weights = jax.vmap(body_weight)(jnp.arange(model.nbody))
    sliding, fixed = model.body_simple == 2, model.body_weldid == 0
    of_mass = jnp.stack([1 / model.body_mass, jnp.zeros(model.nbody)], axis=1)
    body_weights = jnp.where(sliding[:, None], of_mass, body_weights)
    dof_weights = jnp.diag(inverse)
    # All rotations of a joint get their mean, and so do its translations.
    block = np.arange(model.nv)
    for kind, adr in zip(model.jnt_type, model.jnt_dofadr):
        if kind == mujoco.mjtJoint.mjJNT_FREE:
            block[adr : adr + 3], block[adr + 3 : adr + 6] = adr, adr + 3
        elif kind == mujoco.mjtJoint.mjJNT_BALL:
            block[adr : adr + 3] = adr
    same = jnp.asarray(block[:, None] == block, dof_weights.dtype)
    below = np.eye(model.nbody)
    for body in range(model.nbody - 1, 0, -1):
        below[model.body_parentid[body]] += below[body]
    constants = {
        "body_subtreemass": jnp.asarray(below, model.body_mass.dtype) @ model.body_mass,
        "body_invweight0": jnp.where(fixed[:, None], 0.0, body_weights),
        "dof_invweight0": same @ dof_weights / same.sum(1),
    }
    if model.ntendon:
        constants["tendon_invweight0"] = weights(data._impl.ten_J)
    if model.nu:
        moments = data._impl.actuator_moment
        constants["actuator_acc0"] = jnp.linalg.norm(moments @ inverse, axis=1)
    return constants


def _own_device() -> jax.Device:
    """The device for MJX's constants.

    By default MJX uses the first device of all processes, whose arrays the other
    processes cannot read.
    """
    return jax.local_devices()[0]

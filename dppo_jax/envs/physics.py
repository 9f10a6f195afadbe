"""One MuJoCo model, three engines behind one pure interface.

| engine     | where          | how                                                  |
|------------|----------------|------------------------------------------------------|
| `mjx`      | CPU, GPU, TPU  | MuJoCo XLA (`impl="jax"`) inside the jitted program  |
| `mjx-warp` | NVIDIA GPU     | MJX with `impl="warp"`                               |
| `mujoco`   | CPU            | C MuJoCo on all cores, behind one batched callback   |

A task is written once, as pure functions of `qpos`, `qvel`, `displacement` and
`sensordata`. Every simulation may have a model of its own, and a step may change what
acts on it, in the same way on every engine:

    state = physics.reset(qpos, qvel, overrides={"body_mass": mass})
    state = physics.step(state, ctrl, eq_active=grasped)
"""

import contextlib
import copy
import functools
import importlib.util
import io
import math
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import batch as mujoco_batch

from dppo_jax.training import parallel
from dppo_jax.types import Array, PyTree

# On import, MJX prints to the screen which optional packages are absent.
with contextlib.redirect_stdout(io.StringIO()):
    from mujoco import mjx

ENGINES = ("mjx", "mjx-warp", "mujoco")

# What MJX carries from one step to the next besides qpos and qvel. Everything else
# in its Data is recomputed from these, so it need not live in an environment state.
_MJX_FIELDS = (
    "time",
    "act",
    "history",
    "qacc_warmstart",
    "eq_active",
    "mocap_pos",
    "mocap_quat",
)

# Fields of MjModel that every engine reads anew in every step. Absent are those that
# compiling has drawn conclusions from: sizes and frames of geoms, frames of inertia.
_OVERRIDES = (
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
_INERTIAL = {"body_mass", "body_inertia", "body_pos", "body_quat", "dof_armature"}

# What MJX takes for no friction in a joint, in N or Nm.
_LEAST_FRICTION = 1e-9

# Fields of MjData that a step may change: those that stay until they are changed again,
# and those that hold for this one step, as ctrl does.
_LASTING = ("eq_active", "mocap_pos", "mocap_quat")
_MOMENTARY = ("xfrc_applied", "qfrc_applied")
_CHANGES = ("qpos", "qvel", *_LASTING, *_MOMENTARY)


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


class Physics(NamedTuple):
    """Steps one simulation; vmap it for many, each with a model of its own if need be.

    reset: (qpos [nq], qvel [nv], *, overrides={}, **changes) -> PhysicsState at time 0.
        `overrides` are fields of the model by name (`override_names`), in the model's
        shapes. What MuJoCo derives from masses, inertias and places of bodies when it
        compiles follows them, but for `stat` (the scale of the solver's tolerance),
        `eq_data` (what equality constraints hold where) and where mocap bodies start.
        `changes` are `eq_active`, `mocap_pos` and `mocap_quat`.
    step: (state, ctrl [nu], **changes) -> PhysicsState after `num_substeps` substeps.
        `changes` are fields of MjData by name (`change_names`), in its shapes:
        `eq_active`, `mocap_pos` and `mocap_quat` stay until they are changed again,
        `qpos` and `qvel` are where the step begins, `xfrc_applied` and `qfrc_applied`
        hold for all of this step and are zero in the next.

    Both raise ValueError for a name that is not possible or a wrong shape. C MuJoCo
    keeps float64: an entry of an override, `qpos` or `qvel` that equals the model's
    or the state's own rounded to float32 leaves that as it is.
    """

    model: mujoco.MjModel
    reset: Callable[..., PhysicsState]
    step: Callable[..., PhysicsState]
    engine: str
    num_substeps: int


def override_names(model: mujoco.MjModel) -> list[str]:
    """What `Physics.reset` can override in `model`."""
    names = [name for name in _OVERRIDES if _model_field(model, name).size]
    if model.ntendon:
        # Lengths of tendons at rest would have to follow.
        names = [name for name in names if name not in ("body_pos", "body_quat")]
    return names


def change_names(model: mujoco.MjModel) -> list[str]:
    """What `Physics.step` can change in the MjData of `model`."""
    data = mujoco.MjData(model)
    return [name for name in _CHANGES if getattr(data, name).size]


def _model_field(model: mujoco.MjModel, name: str) -> np.ndarray:
    """The array that is called `name`, "opt." leading to the options."""
    owner = model.opt if name.startswith("opt.") else model
    return getattr(owner, name.removeprefix("opt."))


def resolve_engine(engine: str, cpu_engine: str) -> str:
    """Turn `"auto"` into an engine and refuse what cannot run here.

    Args:
        engine: "auto" or one of `ENGINES`.
        cpu_engine: the engine that is faster on CPU for the task at hand;
            accelerators take "mjx".

    Raises:
        ValueError: for an unknown engine, or "mjx-warp" without NVIDIA GPU or Warp.
    """
    backend = jax.default_backend()
    if engine == "auto":
        return cpu_engine if backend == "cpu" else "mjx"
    if engine not in ENGINES:
        raise ValueError(
            f"Unknown engine {engine!r}; choose 'auto' or one of {list(ENGINES)}."
        )
    if engine == "mjx-warp":
        if backend != "gpu":
            raise ValueError(
                f"engine='mjx-warp' needs an NVIDIA GPU, but JAX runs on {backend!r}; "
                "choose 'mjx', 'mujoco' or 'auto'."
            )
        if importlib.util.find_spec("warp") is None:
            raise ValueError(
                "engine='mjx-warp' needs the package `warp-lang`; install it or "
                "choose 'mjx'."
            )
    return engine


def compile_model(xml: str) -> mujoco.MjModel:
    """Compile an MJCF text without a word about what is deprecated in it.

    `MjModel.from_xml_string` prints such warnings and leaves a log file in the working
    directory; users can change neither the files that packages ship nor their age.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deprecated", category=UserWarning)
        return mujoco.MjSpec.from_string(xml).compile()


def make_physics(
    model: mujoco.MjModel,
    num_substeps: int,
    engine: str,
    *,
    max_contacts: int | None = None,
    max_constraints: int | None = None,
) -> Physics:
    """Step `model` by `engine`, `num_substeps` simulator steps per control step.

    Args:
        model: the compiled model; its options (solver, timestep) hold everywhere.
        num_substeps: simulator steps with constant ctrl in one `step`.
        engine: one of `ENGINES`, see `resolve_engine`.
        max_contacts: "mjx-warp" only, contacts to make room for.
        max_constraints: "mjx-warp" only, constraint rows to make room for.

    Raises:
        ValueError: for fewer than one substep or an engine that cannot run here.
    """
    if num_substeps < 1:
        raise ValueError(f"num_substeps={num_substeps} must be at least 1.")
    engine = resolve_engine(engine, engine)
    if engine == "mujoco":
        engine_reset, engine_step = _make_c_mujoco(model, num_substeps)
    elif engine == "mjx":
        data = mjx.make_data(model, impl="jax", device=_own_device())
        engine_reset, engine_step = _make_mjx(model, data, num_substeps, "jax")
    else:
        data = mjx.make_data(
            model,
            device=_own_device(),
            impl="warp",
            naconmax=max_contacts,
            njmax=max_constraints,
        )
        engine_reset, engine_step = _make_mjx(model, data, num_substeps, "warp")
    overridable, changeable = override_names(model), change_names(model)
    lasting = [name for name in changeable if name in _LASTING]
    own_data = mujoco.MjData(model)

    def changed(values: Mapping[str, Any], possible: list[str]) -> dict[str, Array]:
        shapes = {name: getattr(own_data, name).shape for name in possible}
        return _checked(values, shapes, "change")

    def reset(
        qpos: Array,
        qvel: Array,
        *,
        overrides: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> PhysicsState:
        shapes = {name: _model_field(model, name).shape for name in overridable}
        return engine_reset(
            jnp.asarray(qpos),
            jnp.asarray(qvel),
            _checked(overrides or {}, shapes, "override"),
            changed(changes, lasting),
        )

    def step(state: PhysicsState, ctrl: Array, **changes: Any) -> PhysicsState:
        chex.assert_shape(ctrl, (model.nu,))
        return engine_step(state, ctrl, changed(changes, changeable))

    return Physics(model, reset, step, engine, num_substeps)


def _checked(
    values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], verb: str
) -> dict[str, Array]:
    """`values` as arrays of floats, `eq_active` as one of bools."""
    arrays = {}
    for name, value in values.items():
        if name not in shapes:
            raise ValueError(
                f"{name!r} is nothing to {verb} here; possible are {list(shapes)}."
            )
        if np.shape(value) != shapes[name]:
            raise ValueError(
                f"{name} has the shape {np.shape(value)}, but the model's is "
                f"{shapes[name]}; give one simulation's value and use vmap for many."
            )
        array = jnp.asarray(value, dtype=float)
        arrays[name] = array != 0 if name == "eq_active" else array
    return arrays


def _own_device() -> jax.Device:
    """Where MJX keeps its constants; by itself it takes the first device of all
    processes, whose arrays the other processes cannot read."""
    return jax.local_devices()[0]


def _make_mjx(model: mujoco.MjModel, template: Any, num_substeps: int, impl: str):
    mjx_model = mjx.put_model(model, impl=impl, device=_own_device())
    names = [name for name in _MJX_FIELDS if getattr(template, name).size]

    @functools.cache
    def with_friction() -> tuple[Any, Any]:
        """Model and data with rows for friction in every joint.

        MJX makes them where it finds some in the model that it is given first.
        """
        everywhere = copy.copy(model)
        everywhere.dof_frictionloss[...] = 1.0
        device = _own_device()
        with jax.ensure_compile_time_eval():
            return (
                mjx.put_model(everywhere, impl=impl, device=device),
                mjx.make_data(everywhere, impl=impl, device=device),
            )

    def of(overrides: dict[str, Array]) -> tuple[Any, Any]:
        """The model of one simulation, and its data before anything is known."""
        if impl == "jax" and "dof_frictionloss" in overrides:
            base, data = with_friction()
        else:
            base, data = mjx_model, template
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

    def reset(
        qpos: Array, qvel: Array, overrides: dict[str, Array], changes: dict[str, Array]
    ) -> PhysicsState:
        if "dof_frictionloss" in overrides:
            # A row without any friction would hold the joint instead.
            friction = jnp.maximum(overrides["dof_frictionloss"], _LEAST_FRICTION)
            overrides = overrides | {"dof_frictionloss": friction}
        own, fresh = of(overrides)
        if _INERTIAL & overrides.keys():
            own_data = fresh
            if impl == "warp":
                # Its stages cannot be run one by one.
                own = mjx.put_model(model, impl="jax", device=_own_device())
                own = own.tree_replace(overrides)
                own_data = mjx.make_data(model, impl="jax", device=_own_device())
            overrides = overrides | _derive_constants(own, own_data)
        data = fresh.replace(qpos=qpos, qvel=qvel, **typed(changes))
        return outcome(data, jnp.zeros_like(data.qpos), overrides)

    def step(
        state: PhysicsState, ctrl: Array, changes: dict[str, Array]
    ) -> PhysicsState:
        given = typed(changes)
        qpos, qvel = given.get("qpos", state.qpos), given.get("qvel", state.qvel)
        raw = state.raw | {name: given[name] for name in _LASTING if name in given}
        acting = {name: given[name] for name in _MOMENTARY if name in given}
        acting["ctrl"] = ctrl
        own_model, fresh = of(state.overrides)

        def finish(data: Any) -> PhysicsState:
            return outcome(data, data.qpos - qpos, state.overrides)

        if impl == "warp":
            data = fresh.replace(qpos=qpos, qvel=qvel, **raw, **acting)
            data = jax.lax.fori_loop(
                0, num_substeps, lambda _, data: mjx.step(own_model, data), data
            )
            return finish(data)

        def substep(carry, _):
            qpos, qvel, raw = carry
            data = fresh.replace(qpos=qpos, qvel=qvel, **acting, **raw)
            data = mjx.step(own_model, data)
            raw = {name: getattr(data, name) for name in names}
            return (data.qpos, data.qvel, raw), None

        # Carrying only the state through the loop lets XLA keep the rest of Data in
        # registers and temporaries instead of copying it every substep.
        carry, _ = jax.lax.scan(substep, (qpos, qvel, raw), length=num_substeps)
        last_qpos, last_qvel, raw = carry
        return finish(fresh.replace(qpos=last_qpos, qvel=last_qvel, **acting, **raw))

    return reset, step


def _derive_constants(model: Any, data: Any) -> dict[str, Array]:
    """What MuJoCo's mj_setConst derives from inertias and MJX reads.

    The inverse weights are diagonals of J M^-1 J^T at qpos0, averaged over the three
    directions of a translation or rotation; constraints scale with them. For a body
    that only slides, alone, MuJoCo takes 1 / mass instead.
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
    # All rotations or translations of one joint share their mean.
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


class _Slot(NamedTuple):
    """A batch of C simulations and live views of its arrays, all [B, ...].

    bits are the float64 state rows, read as uint32; fresh are those of a simulation
    that has just been reset, [2 * nstate]. given holds the overrides that the batch has
    now as they were given, fields as they are.
    """

    batch: mujoco_batch.Batch
    bits: np.ndarray
    fresh: np.ndarray
    qpos: np.ndarray
    qvel: np.ndarray
    ctrl: np.ndarray
    sensordata: np.ndarray
    given: dict[str, np.ndarray]
    fields: dict[str, np.ndarray]


def _make_c_mujoco(model: mujoco.MjModel, num_substeps: int):
    slots: dict[tuple[int, frozenset[str]], _Slot] = {}
    lock = threading.Lock()
    stage = _sensor_stage(model)
    num_state = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION)
    shapes = (
        jax.ShapeDtypeStruct((model.nq,), jnp.float32),
        jax.ShapeDtypeStruct((model.nv,), jnp.float32),
        jax.ShapeDtypeStruct((model.nsensordata,), jnp.float32),
        jax.ShapeDtypeStruct((model.nq,), jnp.float32),
        jax.ShapeDtypeStruct((2 * num_state,), jnp.uint32),
    )

    def slot_of(num: int, names: Iterable[str]) -> _Slot:
        # A batch cannot take back that a field differs between its simulations.
        key = num, frozenset(names)
        if key not in slots:
            batch = mujoco_batch.Batch(model, num)
            bits = batch.state.view(np.uint32)
            fields = {name: batch.expand(name) for name in key[1]}
            slots[key] = _Slot(
                batch=batch,
                bits=bits,
                fresh=bits[0].copy(),
                qpos=batch.bind("qpos"),
                qvel=batch.bind("qvel"),
                ctrl=batch.bind("ctrl"),
                # Binding makes the batch copy a field out after every call.
                sensordata=(
                    batch.bind("sensordata") if model.nsensor else np.zeros((num, 0))
                ),
                given={name: np.array(value) for name, value in fields.items()},
                fields=fields,
            )
        return slots[key]

    def override(slot: _Slot, overrides: dict[str, np.ndarray]) -> None:
        """Give simulations their models, and only those that have another than now."""
        overrides = {
            name: value.reshape(slot.given[name].shape)
            for name, value in overrides.items()
        }
        stale = np.zeros(slot.batch.nsim, bool)
        for name, value in overrides.items():
            differs = value != slot.given[name]
            stale |= differs.reshape(len(stale), -1).any(axis=1)
        if not stale.any():
            return
        for name, value in overrides.items():
            slot.given[name][stale] = value[stale]
            own = _model_field(model, name)
            slot.fields[name][stale] = _unrounded(value[stale], own)
        if _INERTIAL & overrides.keys():
            slot.batch.set_const(stale)
            if model.neq:
                # mj_setConst would let constraints hold what they hold at qpos0.
                data = overrides.get("eq_data", model.eq_data[None])
                everywhere = np.broadcast_to(data, (len(stale), *model.eq_data.shape))
                slot.batch.expand("eq_data")[stale] = _unrounded(
                    everywhere[stale], model.eq_data
                )

    def outcome(
        slot: _Slot, lead: tuple[int, ...], start: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        # Copies, because the next call may start before XLA has read these.
        values = [
            slot.qpos.astype(np.float32),
            slot.qvel.astype(np.float32),
            slot.sensordata.astype(np.float32),
            (slot.qpos - start).astype(np.float32),
            slot.bits.copy(),
        ]
        return tuple(value.reshape(*lead, value.shape[-1]) for value in values)

    def change(slot: _Slot, changes: dict[str, np.ndarray]) -> None:
        for name, value in changes.items():
            bound = slot.batch.bind(name)
            bound[...] = _unrounded(value.reshape(bound.shape), bound)

    def host_reset(
        qpos: Any, qvel: Any, overrides: dict[str, Any], changes: dict[str, Any]
    ) -> tuple[np.ndarray, ...]:
        lead = qpos.shape[:-1]
        # XLA may need a thread to hand its arrays over, so this waits for no lock.
        qpos, qvel = np.asarray(qpos), np.asarray(qvel)
        overrides, changes = jax.tree.map(np.asarray, (overrides, changes))
        with lock:
            slot = slot_of(math.prod(lead), overrides)
            # All of a simulation is in its row, and mj_resetData is slow by comparison.
            slot.bits[...] = slot.fresh
            slot.qpos[...] = qpos.reshape(slot.qpos.shape)
            slot.qvel[...] = qvel.reshape(slot.qvel.shape)
            change(slot, changes)
            if model.nsensor:
                override(slot, overrides)
                slot.batch.forward(stage=stage)
            return outcome(slot, lead, slot.qpos)

    def host_step(
        raw: Any, ctrl: Any, overrides: dict[str, Any], changes: dict[str, Any]
    ) -> tuple[np.ndarray, ...]:
        lead = raw.shape[:-1]
        raw, ctrl = np.asarray(raw), np.asarray(ctrl)
        overrides, changes = jax.tree.map(np.asarray, (overrides, changes))
        with lock:
            slot = slot_of(math.prod(lead), overrides)
            override(slot, overrides)
            slot.bits[...] = raw.reshape(slot.bits.shape)
            slot.ctrl[...] = ctrl.reshape(slot.ctrl.shape)
            change(slot, changes)
            start = slot.qpos.copy()
            slot.batch.step(nstep=num_substeps, stage=stage)
            for name in changes.keys() & set(_MOMENTARY):
                slot.batch.bind(name)[...] = 0
            return outcome(slot, lead, start)

    def refuse_many_devices() -> None:
        # A callback on each device holds one of XLA's threads, and may need another one
        # to be handed its arrays.
        devices = jax.local_device_count()
        if parallel.num_shards() > 1 < devices and jax.default_backend() == "cpu":
            raise ValueError(
                f"engine='mujoco' serves one CPU device of a process, not {devices}, "
                "and keeps all cores busy with that; use mesh.devices=1, "
                "env.engine='mjx', or a process for each device."
            )

    # "broadcast_all" turns any number of vmaps into leading axes of one call.
    def reset(
        qpos: Array, qvel: Array, overrides: dict[str, Array], changes: dict[str, Array]
    ) -> PhysicsState:
        refuse_many_devices()
        qpos, qvel, sensordata, displacement, raw = jax.pure_callback(
            host_reset,
            shapes,
            qpos,
            qvel,
            overrides,
            changes,
            vmap_method="broadcast_all",
        )
        return PhysicsState(qpos, qvel, sensordata, displacement, raw, overrides)

    def step(
        state: PhysicsState, ctrl: Array, changes: dict[str, Array]
    ) -> PhysicsState:
        refuse_many_devices()
        qpos, qvel, sensordata, displacement, raw = jax.pure_callback(
            host_step,
            shapes,
            state.raw,
            ctrl,
            state.overrides,
            changes,
            vmap_method="broadcast_all",
        )
        return PhysicsState(qpos, qvel, sensordata, displacement, raw, state.overrides)

    return reset, step


def _unrounded(value: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """`value`, but `exact` where that, rounded to the type of `value`, is the same."""
    return np.where(value == exact.astype(value.dtype), exact, value)


def _sensor_stage(model: mujoco.MjModel) -> int:
    """The last stage of mj_forward that the sensors of `model` need."""
    if not model.nsensor:
        return mujoco.mjtStage.mjSTAGE_NONE.value
    return int(model.sensor_needstage.max())

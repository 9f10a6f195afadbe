"""One MuJoCo model, three engines behind one pure interface.

| engine     | where          | how                                                  |
|------------|----------------|------------------------------------------------------|
| `mjx`      | CPU, GPU, TPU  | MuJoCo XLA (`impl="jax"`) inside the jitted program  |
| `mjx-warp` | NVIDIA GPU     | MJX with `impl="warp"`                               |
| `mujoco`   | CPU            | C MuJoCo on all cores, behind one batched callback   |

A task is written once, as pure functions of `qpos`, `qvel`, `displacement` and
`sensordata`.
"""

import contextlib
import importlib.util
import io
import math
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import batch as mujoco_batch

from dppo_jax import parallel
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


class PhysicsState(NamedTuple):
    """State of one simulation; tasks read all but `raw`.

    qpos: [nq] float32.
    qvel: [nv] float32.
    sensordata: [nsensordata] float32, at this very state.
    displacement: [nq] float32, change of qpos over the last step, 0 after a reset.
        C MuJoCo subtracts before it rounds, so a velocity taken from it is as exact
        metres from the origin as at the origin; rounded positions would not be.
    raw: what the engine needs to continue exactly: for MJX a dict of its fields, for
        C MuJoCo the float64 integration state as bits, uint32 [2 * nstate].
    """

    qpos: Array
    qvel: Array
    sensordata: Array
    displacement: Array
    raw: PyTree


class Physics(NamedTuple):
    """Steps one simulation; vmap it for many.

    reset: (qpos [nq], qvel [nv]) -> PhysicsState at time 0.
    step: (state, ctrl [nu]) -> PhysicsState after `num_substeps` substeps.
    """

    model: mujoco.MjModel
    reset: Callable[[Array, Array], PhysicsState]
    step: Callable[[PhysicsState, Array], PhysicsState]
    engine: str
    num_substeps: int


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
        reset, step = _make_c_mujoco(model, num_substeps)
    elif engine == "mjx":
        data = mjx.make_data(model, impl="jax", device=_own_device())
        reset, step = _make_mjx(model, data, num_substeps, "jax")
    else:
        data = mjx.make_data(
            *(model, _own_device(), "warp"),
            naconmax=max_contacts,
            njmax=max_constraints,
        )
        reset, step = _make_mjx(model, data, num_substeps, "warp")
    return Physics(model, reset, step, engine, num_substeps)


def _own_device() -> jax.Device:
    """Where MJX keeps its constants; by itself it takes the first device of all
    processes, whose arrays the other processes cannot read."""
    return jax.local_devices()[0]


def _make_mjx(model: mujoco.MjModel, template: Any, num_substeps: int, impl: str):
    mjx_model = mjx.put_model(model, impl=impl, device=_own_device())
    names = [name for name in _MJX_FIELDS if getattr(template, name).size]

    def outcome(data: Any, displacement: Array) -> PhysicsState:
        raw = {name: getattr(data, name) for name in names}
        sensordata = data.sensordata
        if model.nsensor:
            # XLA drops the stages that no sensor reads.
            sensordata = mjx.forward(mjx_model, data).sensordata
        return PhysicsState(data.qpos, data.qvel, sensordata, displacement, raw)

    def reset(qpos: Array, qvel: Array) -> PhysicsState:
        data = template.replace(qpos=qpos, qvel=qvel)
        return outcome(data, jnp.zeros_like(data.qpos))

    def step(state: PhysicsState, ctrl: Array) -> PhysicsState:
        chex.assert_shape(ctrl, (model.nu,))
        if impl == "warp":
            data = template.replace(qpos=state.qpos, qvel=state.qvel, **state.raw)
            data = data.replace(ctrl=ctrl)
            data = jax.lax.fori_loop(
                0, num_substeps, lambda _, data: mjx.step(mjx_model, data), data
            )
            return outcome(data, data.qpos - state.qpos)

        def substep(carry, _):
            qpos, qvel, raw = carry
            data = template.replace(qpos=qpos, qvel=qvel, ctrl=ctrl, **raw)
            data = mjx.step(mjx_model, data)
            raw = {name: getattr(data, name) for name in names}
            return (data.qpos, data.qvel, raw), None

        # Carrying only the state through the loop lets XLA keep the rest of Data in
        # registers and temporaries instead of copying it every substep.
        carry, _ = jax.lax.scan(
            substep, (state.qpos, state.qvel, state.raw), length=num_substeps
        )
        qpos, qvel, raw = carry
        data = template.replace(qpos=qpos, qvel=qvel, ctrl=ctrl, **raw)
        return outcome(data, qpos - state.qpos)

    return reset, step


class _Slot(NamedTuple):
    """A batch of C simulations and live views of its arrays, all [B, ...].

    bits are the float64 state rows, read as uint32; fresh are those of a simulation
    that has just been reset, [2 * nstate].
    """

    batch: mujoco_batch.Batch
    bits: np.ndarray
    fresh: np.ndarray
    qpos: np.ndarray
    qvel: np.ndarray
    ctrl: np.ndarray
    sensordata: np.ndarray


def _make_c_mujoco(model: mujoco.MjModel, num_substeps: int):
    slots: dict[int, _Slot] = {}
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

    def slot_of(num: int) -> _Slot:
        if num not in slots:
            batch = mujoco_batch.Batch(model, num)
            bits = batch.state.view(np.uint32)
            slots[num] = _Slot(
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
            )
        return slots[num]

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

    def host_reset(qpos: Any, qvel: Any) -> tuple[np.ndarray, ...]:
        lead = qpos.shape[:-1]
        # XLA may need a thread to hand its arrays over, so this waits for no lock.
        qpos, qvel = np.asarray(qpos), np.asarray(qvel)
        with lock:
            slot = slot_of(math.prod(lead))
            # All of a simulation is in its row, and mj_resetData is slow by comparison.
            slot.bits[...] = slot.fresh
            slot.qpos[...] = qpos.reshape(slot.qpos.shape)
            slot.qvel[...] = qvel.reshape(slot.qvel.shape)
            if model.nsensor:
                slot.batch.forward(stage=stage)
            return outcome(slot, lead, slot.qpos)

    def host_step(raw: Any, ctrl: Any) -> tuple[np.ndarray, ...]:
        lead = raw.shape[:-1]
        raw, ctrl = np.asarray(raw), np.asarray(ctrl)
        with lock:
            slot = slot_of(math.prod(lead))
            slot.bits[...] = raw.reshape(slot.bits.shape)
            slot.ctrl[...] = ctrl.reshape(slot.ctrl.shape)
            start = slot.qpos.copy()
            slot.batch.step(nstep=num_substeps, stage=stage)
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
    def reset(qpos: Array, qvel: Array) -> PhysicsState:
        refuse_many_devices()
        return PhysicsState(
            *jax.pure_callback(
                host_reset, shapes, qpos, qvel, vmap_method="broadcast_all"
            )
        )

    def step(state: PhysicsState, ctrl: Array) -> PhysicsState:
        chex.assert_shape(ctrl, (model.nu,))
        refuse_many_devices()
        return PhysicsState(
            *jax.pure_callback(
                host_step, shapes, state.raw, ctrl, vmap_method="broadcast_all"
            )
        )

    return reset, step


def _sensor_stage(model: mujoco.MjModel) -> int:
    """The last stage of mj_forward that the sensors of `model` need."""
    if not model.nsensor:
        return mujoco.mjtStage.mjSTAGE_NONE.value
    return int(model.sensor_needstage.max())

"""The engine `mujoco`: C MuJoCo on all cores, behind one batched callback."""

import copy
import math
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jax.experimental.buffer_callback import buffer_callback
from mujoco import batch as mujoco_batch

from dppo_jax.envs.physics.state import (
    INERTIAL,
    MOMENTARY,
    PhysicsState,
    model_field,
)
from dppo_jax.errors import SettingsError
from dppo_jax.training import parallel
from dppo_jax.types import Array


class _Slot(NamedTuple):
    """A batch of C simulations and views of its arrays, all [B, ...].

    bits: the float64 states, viewed as uint32 [B, 2 * nstate].
    fresh: those of a simulation that has just been reset, [2 * nstate].
    given: the current overrides as they were passed in.
    fields: the current overrides in the batch, in float64.
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


def make_c_mujoco(
    model: mujoco.MjModel, num_substeps: int
) -> tuple[Callable[..., PhysicsState], Callable[..., PhysicsState]]:
    """Make `reset` and `step` of `Physics`; here all their arguments are required.

    A simulation that breaks keeps its NaNs. By default MuJoCo would put it back to the
    start in silence, in the middle of an episode.
    """
    model = copy.copy(model)
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
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
        # Once a field of a batch differs between simulations, it stays so; therefore
        # each set of names has its own batch.
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
                # A bound field is copied after every call, so bind only if needed.
                sensordata=(
                    batch.bind("sensordata") if model.nsensor else np.zeros((num, 0))
                ),
                given={name: np.array(value) for name, value in fields.items()},
                fields=fields,
            )
        return slots[key]

    def override(slot: _Slot, overrides: dict[str, np.ndarray]) -> None:
        """Set the overrides of those simulations whose overrides have changed."""
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
            own = model_field(model, name)
            slot.fields[name][stale] = _unrounded(value[stale], own)
        if INERTIAL & overrides.keys():
            slot.batch.set_const(stale)
            if model.neq:
                # mj_setConst sets eq_data to the configuration at qpos0; restore it.
                data = overrides.get("eq_data", model.eq_data[None])
                everywhere = np.broadcast_to(data, (len(stale), *model.eq_data.shape))
                slot.batch.expand("eq_data")[stale] = _unrounded(
                    everywhere[stale], model.eq_data
                )

    def write(slot: _Slot, out: Any, start: np.ndarray) -> None:
        """Write qpos, qvel, sensordata, displacement and raw into arrays of XLA."""
        values = (
            slot.qpos,
            slot.qvel,
            slot.sensordata,
            slot.qpos - start,
            slot.bits,
        )
        for array, value in zip(out, values, strict=True):
            np.asarray(array).reshape(value.shape)[...] = value

    def change(slot: _Slot, changes: dict[str, np.ndarray]) -> None:
        for name, value in changes.items():
            bound = slot.batch.bind(name)
            bound[...] = _unrounded(value.reshape(bound.shape), bound)

    def host_reset(
        out: Any,
        qpos: np.ndarray,
        qvel: np.ndarray,
        overrides: dict[str, np.ndarray],
        changes: dict[str, np.ndarray],
    ) -> None:
        with lock:
            slot = slot_of(math.prod(qpos.shape[:-1]), overrides)
            # A row holds the whole state, and copying it is faster than mj_resetData.
            slot.bits[...] = slot.fresh
            slot.qpos[...] = qpos.reshape(slot.qpos.shape)
            slot.qvel[...] = qvel.reshape(slot.qvel.shape)
            change(slot, changes)
            if model.nsensor:
                override(slot, overrides)
                slot.batch.forward(stage=stage)
            write(slot, out, slot.qpos)

    def host_step(
        out: Any,
        raw: np.ndarray,
        ctrl: np.ndarray,
        overrides: dict[str, np.ndarray],
        changes: dict[str, np.ndarray],
    ) -> None:
        with lock:
            slot = slot_of(math.prod(raw.shape[:-1]), overrides)
            override(slot, overrides)
            slot.bits[...] = raw.reshape(slot.bits.shape)
            slot.ctrl[...] = ctrl.reshape(slot.ctrl.shape)
            change(slot, changes)
            start = slot.qpos.copy()
            slot.batch.step(nstep=num_substeps, stage=stage)
            for name in changes.keys() & set(MOMENTARY):
                slot.batch.bind(name)[...] = 0
            write(slot, out, start)

    def refuse_many_devices() -> None:
        # A callback on each device occupies one of XLA's threads and may need another
        # one to get its arrays, so several callbacks could deadlock.
        devices = jax.local_device_count()
        if parallel.num_shards() > 1 < devices and jax.default_backend() == "cpu":
            raise SettingsError(
                f"engine='mujoco' works with one CPU device per process, not {devices},"
                " and uses all cores for it; use mesh.devices=1, env.engine='mjx', or "
                "one process per device."
            )

    def reset(
        qpos: Array, qvel: Array, overrides: dict[str, Array], changes: dict[str, Array]
    ) -> PhysicsState:
        refuse_many_devices()
        qpos, qvel, sensordata, displacement, raw = _call_host(
            host_reset, shapes, qpos, qvel, overrides, changes
        )
        return PhysicsState(qpos, qvel, sensordata, displacement, raw, overrides)

    def step(
        state: PhysicsState, ctrl: Array, changes: dict[str, Array]
    ) -> PhysicsState:
        refuse_many_devices()
        qpos, qvel, sensordata, displacement, raw = _call_host(
            host_step, shapes, state.raw, ctrl, state.overrides, changes
        )
        return PhysicsState(qpos, qvel, sensordata, displacement, raw, state.overrides)

    return reset, step


def _call_host(
    function: Callable[..., None], shapes: tuple[jax.ShapeDtypeStruct, ...], *args: Any
) -> tuple[Array, ...]:
    """Call a NumPy function of (arrays to write results into, *args) from a program.

    On the CPU backend the function works on the arrays of XLA themselves. A
    `pure_callback` would convert each of them on the way in and copy it on the way out,
    which takes a quarter of the time of the physics of 40 environments of Hopper.
    """
    # "broadcast_all" turns any number of vmaps into leading axes of one call.
    if jax.default_backend() == "cpu":

        def write(_: Any, out: Any, *given: Any) -> None:
            function(out, *jax.tree.map(np.asarray, given))

        call = buffer_callback(write, shapes, vmap_method="broadcast_all")
        return call(*args)

    def compute(*given: Any) -> tuple[np.ndarray, ...]:
        # Converting may need one of XLA's threads, and `function` holds a lock.
        given = jax.tree.map(np.asarray, given)
        lead = given[0].shape[:-1]
        out = tuple(np.empty((*lead, *x.shape), x.dtype) for x in shapes)
        function(out, *given)
        return out

    return jax.pure_callback(compute, shapes, *args, vmap_method="broadcast_all")


def _unrounded(value: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Replace entries of `value` that equal the rounded `exact` by those of `exact`."""
    return np.where(value == exact.astype(value.dtype), exact, value)


def _sensor_stage(model: mujoco.MjModel) -> int:
    """The last stage of mj_forward that the sensors of `model` need."""
    if not model.nsensor:
        return mujoco.mjtStage.mjSTAGE_NONE.value
    return int(model.sensor_needstage.max())

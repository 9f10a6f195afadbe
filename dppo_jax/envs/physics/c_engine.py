"""The engine `mujoco`: C MuJoCo on all cores, behind one batched callback."""

import math
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
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
    """Make `reset` and `step` of `Physics`; here all their arguments are required."""
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

    def outcome(
        slot: _Slot, lead: tuple[int, ...], start: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        # Return copies, because the next call may start before XLA has read these.
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
        # Converting may need one of XLA's threads, so do it before taking the lock.
        qpos, qvel = np.asarray(qpos), np.asarray(qvel)
        overrides, changes = jax.tree.map(np.asarray, (overrides, changes))
        with lock:
            slot = slot_of(math.prod(lead), overrides)
            # A row holds the whole state, and copying it is faster than mj_resetData.
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
            for name in changes.keys() & set(MOMENTARY):
                slot.batch.bind(name)[...] = 0
            return outcome(slot, lead, start)

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
    """Replace entries of `value` that equal the rounded `exact` by those of `exact`."""
    return np.where(value == exact.astype(value.dtype), exact, value)


def _sensor_stage(model: mujoco.MjModel) -> int:
    """The last stage of mj_forward that the sensors of `model` need."""
    if not model.nsensor:
        return mujoco.mjtStage.mjSTAGE_NONE.value
    return int(model.sensor_needstage.max())

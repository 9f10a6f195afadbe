"""Step MuJoCo models by one of three engines, with one pure interface.

| engine     | where          | how                                                  |
|------------|----------------|------------------------------------------------------|
| `mjx`      | CPU, GPU, TPU  | MuJoCo XLA (`impl="jax"`) inside the jitted program  |
| `mjx-warp` | NVIDIA GPU     | MJX with `impl="warp"`                               |
| `mujoco`   | CPU            | C MuJoCo on all cores, behind one batched callback   |

A task is written once, as pure functions of `qpos`, `qvel`, `displacement` and
`sensordata`. Every simulation may have its own model, and a step may change fields of
its data, in the same way on every engine:

    state = physics.reset(qpos, qvel, overrides={"body_mass": mass})
    state = physics.step(state, ctrl, eq_active=grasped)

The space that MuJoCo Warp has for contacts and constraints of a simulation is limited,
and what does not fit is left out. `mjx-warp:contacts=64,constraints=256` sets it.
"""

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from dppo_jax.envs.physics.c_engine import make_c_mujoco
from dppo_jax.envs.physics.state import (
    LASTING,
    PhysicsState,
    change_names,
    model_field,
    override_names,
)
from dppo_jax.errors import SettingsError
from dppo_jax.types import Array

ENGINES = ("mjx", "mjx-warp", "mujoco")


class Physics(NamedTuple):
    """Steps one simulation; `vmap` steps many, each with its own model if needed.

    reset: (qpos [nq], qvel [nv], *, overrides={}, **changes) -> PhysicsState at time 0.
        `overrides` are fields of the model by name (`override_names`), in the model's
        shapes. Constants that MuJoCo derives at compilation from masses, inertias and
        places of bodies are updated, except `stat` (the scale of the solver's
        tolerance), `eq_data` (what equality constraints hold, and where) and the start
        of mocap bodies. `changes` are `eq_active`, `mocap_pos` and `mocap_quat`.
    step: (state, ctrl [nu], **changes) -> PhysicsState after `num_substeps` substeps.
        `changes` are fields of MjData by name (`change_names`), in its shapes:
        `eq_active`, `mocap_pos` and `mocap_quat` stay until they are changed again. The
        step starts from `qpos` and `qvel`. `xfrc_applied` and `qfrc_applied` act during
        this step only.
    override: (state, overrides) -> the state with these fields of its model too, from
        the next step on; `overrides` are as for `reset`. `sensordata` stays that of the
        model before.

    All raise SettingsError for an unknown name or a wrong shape. C MuJoCo keeps
    float64: if an entry of an override, `qpos` or `qvel` equals the entry of the model
    or state rounded to float32, the float64 value is kept.
    """

    model: mujoco.MjModel
    reset: Callable[..., PhysicsState]
    step: Callable[..., PhysicsState]
    override: Callable[[PhysicsState, Mapping[str, Any]], PhysicsState]
    engine: str
    num_substeps: int


def resolve_engine(engine: str, cpu_engine: str) -> str:
    """Replace "auto" by an engine, and check that the engine can run here.

    Args:
        engine: "auto" or one of `ENGINES`, see `split_engine`.
        cpu_engine: what "auto" means on CPU, the faster engine for the task; on
            accelerators it means "mjx".

    Raises:
        SettingsError: an unknown engine, "mjx-warp" without NVIDIA GPU or Warp, or a
            wrong space.
    """
    backend = jax.default_backend()
    if engine == "auto":
        return cpu_engine if backend == "cpu" else "mjx"
    name, _ = split_engine(engine)
    if name == "mjx-warp":
        if backend != "gpu":
            raise SettingsError(
                f"engine='mjx-warp' needs an NVIDIA GPU, but JAX runs on {backend!r}; "
                "choose 'mjx', 'mujoco' or 'auto'."
            )
        if importlib.util.find_spec("warp") is None:
            raise SettingsError(
                "engine='mjx-warp' needs the package `warp-lang`; install it or "
                "choose 'mjx'."
            )
    return engine


def split_engine(engine: str) -> tuple[str, dict[str, int]]:
    """Split an engine into its name and its space.

    Args:
        engine: one of `ENGINES`, such as "mjx"; "mjx-warp" may be followed by the space
            for one simulation, as in "mjx-warp:contacts=64,constraints=256".

    Returns:
        The name, and the numbers given for "contacts" and "constraints".

    Raises:
        SettingsError: an unknown engine, or a wrong space.
    """
    name, colon, text = engine.partition(":")
    if name not in ENGINES:
        raise SettingsError(
            f"Unknown engine {engine!r}; choose 'auto' or one of {list(ENGINES)}."
        )
    space: dict[str, int] = {}
    for entry in text.split(",") if colon else ():
        what, _, number = entry.partition("=")
        if (
            name != "mjx-warp"
            or what not in ("contacts", "constraints")
            or what in space
            or not (number.isdecimal() and int(number))
        ):
            raise SettingsError(
                f"engine={engine!r}: {entry!r} is no space. Only 'mjx-warp' has one, "
                "written as 'mjx-warp:contacts=64,constraints=256'."
            )
        space[what] = int(number)
    return name, space


def compile_model(xml: str) -> mujoco.MjModel:
    """Compile an MJCF text without warnings about deprecated parts.

    `MjModel.from_xml_string` would print them and write a log file into the working
    directory, although users cannot change the files of other packages.
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
    """Make the functions that step `model` by `engine`.

    Args:
        model: the compiled model; its options (solver, timestep) apply to every engine.
        num_substeps: simulator steps with constant ctrl in one `step`.
        engine: one of `ENGINES`, see `resolve_engine`; the space that it states has
            precedence.
        max_contacts: only for "mjx-warp", contacts to allocate for each simulation;
            those that run at once share this space. None: as MuJoCo Warp chooses.
        max_constraints: only for "mjx-warp", constraint rows to allocate for each
            simulation; None: as MuJoCo Warp chooses.

    Raises:
        SettingsError: fewer than one substep, or an engine that cannot run here.
    """
    if num_substeps < 1:
        raise SettingsError(f"num_substeps={num_substeps} must be at least 1.")
    engine, space = split_engine(resolve_engine(engine, engine))
    if engine == "mujoco":
        engine_reset, engine_step = make_c_mujoco(model, num_substeps)
        complete: Callable[..., dict] = dict
    else:
        # Importing MJX takes longer than all other imports of a program together.
        from dppo_jax.envs.physics.mjx_engine import make_mjx

        engine_reset, engine_step, complete = make_mjx(
            model,
            num_substeps,
            impl="jax" if engine == "mjx" else "warp",
            max_contacts=space.get("contacts", max_contacts),
            max_constraints=space.get("constraints", max_constraints),
        )
    overridable, changeable = override_names(model), change_names(model)
    lasting = [name for name in changeable if name in LASTING]
    own_data = mujoco.MjData(model)
    shapes = {name: model_field(model, name).shape for name in overridable}

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
        start = changed(dict(qpos=qpos, qvel=qvel), ["qpos", "qvel"])
        return engine_reset(
            start["qpos"],
            start["qvel"],
            _checked(overrides or {}, shapes, "override"),
            changed(changes, lasting),
        )

    def step(state: PhysicsState, ctrl: Array, **changes: Any) -> PhysicsState:
        ctrl = changed(dict(ctrl=ctrl), ["ctrl"])["ctrl"]
        return engine_step(state, ctrl, changed(changes, changeable))

    def override(state: PhysicsState, overrides: Mapping[str, Any]) -> PhysicsState:
        own = state.overrides | _checked(overrides, shapes, "override")
        return state._replace(overrides=complete(own))

    return Physics(model, reset, step, override, engine, num_substeps)


def _checked(
    values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], verb: str
) -> dict[str, Array]:
    """Check names and shapes; convert to floats, and `eq_active` to bools."""
    arrays = {}
    for name, value in values.items():
        if name not in shapes:
            raise SettingsError(
                f"{name!r} is not a field to {verb} here; possible are {list(shapes)}."
            )
        if np.shape(value) != shapes[name]:
            raise SettingsError(
                f"{name} has the shape {np.shape(value)}, but the model's is "
                f"{shapes[name]}; give one simulation's value and use vmap for many."
            )
        array = jnp.asarray(value, dtype=float)
        arrays[name] = array != 0 if name == "eq_active" else array
    return arrays

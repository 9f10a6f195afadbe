"""Control steps per second of every task, by engine and number of environments.

    python -m benchmarks.physics [--tasks avoid] [--engines mjx mujoco]
        [--batch 128 1024] [--steps 50] [--json [PATH]]

`steps/s` counts control steps of whole environments (task, time limit, resets) in one
jitted scan. `C steps/s` is the rate of `mujoco.batch` alone on the same model, with as
many simulations on as many threads. It repeats the steps that the environments made,
each from its recorded state: the rate that engine "mujoco" would reach if tasks and
calls cost nothing. Both take turns, call by call; `ratio` is `steps/s` divided by
`C steps/s`. No rate includes compiling.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
import mujoco
import numpy as np
from mujoco import batch as mujoco_batch

from benchmarks import timing
from dppo_jax.envs import TASKS, make_task, time_limit, vectorize
from dppo_jax.envs.physics import (
    ENGINES,
    Physics,
    PhysicsState,
    make_physics,
    resolve_engine,
)
from dppo_jax.errors import SettingsError
from dppo_jax.rollout import env_keys
from dppo_jax.runtime import num_cores
from dppo_jax.types import Array

# Control steps in one timed call, and the seconds after which repeating stops.
NUM_STEPS = 50
MAX_SECONDS = 10.0

# The time limit of tasks that set none.
DEFAULT_MAX_STEPS = 100


class Simulations(NamedTuple):
    """What `mujoco.batch` needs to repeat the steps of environments.

    raw: [T, B, nstate] float64 integration states before every control step.
    ctrl: [T, B, nu] float64, the controls of each step; zero where the environment was
        reset after the step.
    stage: the stage of mj_forward that the task's sensors need after a step.
    """

    model: mujoco.MjModel
    num_substeps: int
    raw: np.ndarray
    ctrl: np.ndarray
    stage: int


def usable_engines() -> list[str]:
    """The engines that run on this machine."""

    def usable(engine: str) -> bool:
        try:
            return resolve_engine(engine, engine) == engine
        except SettingsError:
            return False

    return [engine for engine in ENGINES if usable(engine)]


def make_rollout(name: str, engine: str, batch: int, num_steps: int, **options: Any):
    """Jitted functions: reset, key -> state [B], and roll-out, (state, key) -> state.

    With `trace` the roll-out also returns the engine's raw state after every step.
    """
    env = make_task(name, engine=engine, **options)
    if env.max_steps is None:
        env = time_limit(env, DEFAULT_MAX_STEPS)
    vec_env = vectorize(env, batch)

    def rollout(state, key, trace=False):
        shape = (num_steps, batch, *env.action_shape)
        actions = jax.random.uniform(key, shape, minval=-1.0)

        def step(state, action):
            state = vec_env.step(state, action)[0]
            return state, physics_state(state).raw if trace else None

        state, raw = jax.lax.scan(step, state, actions)
        return (state, raw) if trace else state

    def reset(key):
        return vec_env.reset(env_keys(key, batch))

    return jax.jit(reset), jax.jit(rollout, static_argnames="trace")


def physics_state(state: Any) -> PhysicsState:
    """The PhysicsState inside an environment state, under any wrappers."""

    def is_physics(node: Any) -> bool:
        return isinstance(node, PhysicsState)

    found = [s for s in jax.tree.leaves(state, is_leaf=is_physics) if is_physics(s)]
    (physics,) = found
    return physics


def record_simulations(
    name: str, batch: int, num_steps: int, **options: Any
) -> Simulations:
    """Record `num_steps` steps of environments, the same as in `environment_rate`."""
    physics = engine_of(name, "mujoco", **options)
    reset, rollout = make_rollout(name, "mujoco", batch, num_steps, **options)
    start = reset(jax.random.key(0))
    _, bits = rollout(start, jax.random.key(1), trace=True)
    first = physics_state(start).raw
    raw = np.concatenate([np.asarray(first)[None], np.asarray(bits)]).view(np.float64)
    simulations = mujoco_batch.Batch(physics.model, batch)
    bound, ctrl = simulations.bind("ctrl"), []
    for after in raw[1:]:
        simulations.state[...] = after
        ctrl.append(np.array(bound))
    needed = physics.model.sensor_needstage
    stage = int(needed.max()) if len(needed) else mujoco.mjtStage.mjSTAGE_NONE.value
    return Simulations(
        physics.model, physics.num_substeps, raw[:-1], np.stack(ctrl), stage
    )


def c_call(recorded: Simulations) -> timing.Call:
    """The recorded steps by `mujoco.batch` alone."""
    num = recorded.raw.shape[1]
    batch = mujoco_batch.Batch(recorded.model, num, nthread=num_cores())
    ctrl = batch.bind("ctrl")

    def run() -> None:
        for before, given in zip(recorded.raw, recorded.ctrl):
            batch.state[...] = before
            ctrl[...] = given
            batch.step(nstep=recorded.num_substeps, stage=recorded.stage)

    return timing.Call(run, ())


def engine_of(name: str, engine: str, **options: Any) -> Physics:
    """The physics of a task, with the solver settings of the task.

    A task does not give access to its physics, so this records the call that makes it.
    """
    made: list[Physics] = []

    def look_on(*args: Any, **kwargs: Any) -> Physics:
        made.append(make_physics(*args, **kwargs))
        return made[-1]

    with contextlib.ExitStack() as stack:
        for module in list(sys.modules.values()):
            if getattr(module, "make_physics", None) is make_physics:
                if module.__name__.startswith("dppo_jax.envs.tasks."):
                    patch = mock.patch.object(module, "make_physics", look_on)
                    stack.enter_context(patch)
        make_task(name, engine=engine, **options)
    (physics,) = made
    return physics


def mjx_call(
    name: str, engine: str, batch: int, num_steps: int, **options: Any
) -> timing.Call:
    """Control steps of an MJX engine without task, limits and resets."""
    physics = engine_of(name, engine, **options)
    reset, rollout = make_rollout(name, engine, batch, num_steps, **options)
    state = physics_state(rollout(reset(jax.random.key(0)), jax.random.key(1)))
    low, high = physics.model.actuator_ctrlrange.T
    shape = (batch, physics.model.nu)
    ctrl = jax.random.uniform(jax.random.key(2), shape, minval=low, maxval=high)

    @jax.jit
    def run(state: PhysicsState, ctrl: Array) -> PhysicsState:
        step = jax.vmap(physics.step)
        return jax.lax.scan(
            lambda state, _: (step(state, ctrl), None), state, length=num_steps
        )[0]

    return timing.Call(run, (state, ctrl))


def engine_rate(
    name: str, engine: str, batch: int, num_steps: int, **options: Any
) -> float:
    """Control steps per second of an engine alone, from states of the task.

    Args:
        options: of the task.
    """
    if engine == "mujoco":
        call = c_call(record_simulations(name, batch, num_steps, **options))
    else:
        call = mjx_call(name, engine, batch, num_steps, **options)
    (timed,) = timing.measure_together([call], max_seconds=MAX_SECONDS)
    return batch * num_steps / timed.median


def environment_call(name: str, engine: str, batch: int, num_steps: int) -> timing.Call:
    """Control steps of whole environments."""
    reset, rollout = make_rollout(name, engine, batch, num_steps)
    return timing.Call(rollout, (reset(jax.random.key(0)), jax.random.key(1)))


def measure_task(
    name: str, engines: Sequence[str], batch: int, num_steps: int = NUM_STEPS
) -> list[dict[str, Any]]:
    """One row for each engine, measured in turns with C MuJoCo alone."""
    what = f"{name} x {batch:,}: C MuJoCo, {', '.join(engines)}"
    print(f"measuring {what}", file=sys.stderr, flush=True)
    calls = [c_call(record_simulations(name, batch, num_steps))]
    calls += [environment_call(name, engine, batch, num_steps) for engine in engines]
    alone, *whole = timing.measure_together(calls, max_seconds=MAX_SECONDS * len(calls))
    total = batch * num_steps
    return [
        {
            "task": name,
            "engine": engine,
            "batch": batch,
            "steps/s": total / timed.median,
            "slowest": total / timed.slowest,
            "fastest": total / timed.fastest,
            "C steps/s": total / alone.median,
            "ratio": alone.median / timed.median,
            "compile s": timed.compile,
        }
        for engine, timed in zip(engines, whole)
    ]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser("benchmarks.physics", description=description)
    batches = [128, 1024] if jax.default_backend() == "cpu" else [1024, 8192]
    add = parser.add_argument
    add("--tasks", nargs="+", choices=sorted(TASKS), default=sorted(TASKS))
    add("--engines", nargs="+", choices=ENGINES, help="default: all that run here")
    add("--batch", nargs="+", type=int, default=batches, help="environments")
    add("--steps", type=int, default=NUM_STEPS, help="control steps per timed call")
    timing.add_json(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    report = timing.start()
    rows = []
    for name in options.tasks:
        for batch in options.batch:
            engines = options.engines or usable_engines()
            rows += measure_task(name, engines, batch, options.steps)
    timing.finish("physics", rows, report, options.json)


if __name__ == "__main__":
    main()

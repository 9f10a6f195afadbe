"""Control steps per second of every task, by engine and number of environments.

    python -m benchmarks.physics [--tasks avoid] [--engines mjx mujoco]
        [--batch 128 1024] [--steps 50] [--json [PATH]]

`steps/s` counts control steps of whole environments (task, time limit, resets) in one
jitted scan. `C steps/s` is what `mujoco.batch` does by itself on the same model, with
as many simulations on as many threads, starting from states that the environments were
in: what engine "mujoco" could reach if tasks and calls cost nothing. `ratio` is the
former divided by the latter. Compiling is not part of any rate.
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
from dppo_jax.runtime import num_cores
from dppo_jax.types import Array

# Control steps in one timed call, and the seconds after which repeating stops.
NUM_STEPS = 50
MAX_SECONDS = 10.0

# For a task that sets no limit of its own.
DEFAULT_MAX_STEPS = 100


class Simulations(NamedTuple):
    """What `mujoco.batch` needs to go on where environments were.

    raw: [B, nstate] float64 integration states, controls included.
    ctrl: [B, nu] float64.
    """

    model: mujoco.MjModel
    num_substeps: int
    raw: np.ndarray
    ctrl: np.ndarray


def usable_engines() -> list[str]:
    """The engines that run on this machine."""

    def usable(engine: str) -> bool:
        try:
            return resolve_engine(engine, engine) == engine
        except ValueError:
            return False

    return [engine for engine in ENGINES if usable(engine)]


def make_rollout(name: str, engine: str, batch: int, num_steps: int, **options: Any):
    """A function key -> state [B] and its jitted roll-out (state, key) -> state."""
    env = make_task(name, engine=engine, **options)
    if env.max_steps is None:
        env = time_limit(env, DEFAULT_MAX_STEPS)
    vec_env = vectorize(env, batch)

    @jax.jit
    def rollout(state, key):
        shape = (num_steps, batch, *env.action_shape)
        actions = jax.random.uniform(key, shape, minval=-1.0)
        return jax.lax.scan(
            lambda state, action: (vec_env.step(state, action)[0], None), state, actions
        )[0]

    return jax.jit(vec_env.reset), rollout


def physics_state(state: Any) -> PhysicsState:
    """The PhysicsState inside an environment state, however wrapped."""

    def is_physics(node: Any) -> bool:
        return isinstance(node, PhysicsState)

    found = [s for s in jax.tree.leaves(state, is_leaf=is_physics) if is_physics(s)]
    (physics,) = found
    return physics


def start_simulations(
    name: str, batch: int, num_steps: int, **options: Any
) -> Simulations:
    """Simulations in the states where environments are after `num_steps` steps."""
    physics = engine_of(name, "mujoco", **options)
    model = physics.model
    reset, rollout = make_rollout(name, "mujoco", batch, num_steps, **options)
    state = rollout(reset(jax.random.key(0)), jax.random.key(1))
    raw = np.asarray(physics_state(state).raw).view(np.float64)
    simulations = mujoco_batch.Batch(model, batch)
    simulations.state[...] = raw
    ctrl = np.array(simulations.bind("ctrl"))
    return Simulations(model, physics.num_substeps, raw, ctrl)


def c_rate(start: Simulations, num_steps: int) -> float:
    """Control steps per second of `mujoco.batch` alone."""
    batch = mujoco_batch.Batch(start.model, len(start.raw), nthread=num_cores())
    ctrl = batch.bind("ctrl")

    def run() -> None:
        batch.state[...] = start.raw
        for _ in range(num_steps):
            ctrl[...] = start.ctrl
            batch.step(nstep=start.num_substeps)

    seconds = timing.measure(run, max_seconds=MAX_SECONDS).median
    return len(start.raw) * num_steps / seconds


def engine_of(name: str, engine: str, **options: Any) -> Physics:
    """The physics that a task runs on, with the solver settings it chose.

    A task keeps it to itself, so this looks on while the task makes it.
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


def mjx_rate(
    name: str, engine: str, batch: int, num_steps: int, **options: Any
) -> float:
    """Control steps per second of an MJX engine without task, limits and resets."""
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

    timed = timing.measure(run, state, ctrl, max_seconds=MAX_SECONDS)
    return batch * num_steps / timed.median


def engine_rate(
    name: str, engine: str, batch: int, num_steps: int, **options: Any
) -> float:
    """Control steps per second of an engine alone, from states of the task.

    Args:
        options: of the task.
    """
    if engine == "mujoco":
        start = start_simulations(name, batch, num_steps, **options)
        return c_rate(start, num_steps)
    return mjx_rate(name, engine, batch, num_steps, **options)


def environment_rate(
    name: str, engine: str, batch: int, num_steps: int
) -> tuple[float, timing.Timing]:
    """Control steps per second of environments, and how that was timed."""
    reset, rollout = make_rollout(name, engine, batch, num_steps)
    state: Any = reset(jax.random.key(0))
    key: Array = jax.random.key(1)
    timed = timing.measure(rollout, state, key, max_seconds=MAX_SECONDS)
    return batch * num_steps / timed.median, timed


def measure_task(
    name: str, engines: Sequence[str], batch: int, num_steps: int = NUM_STEPS
) -> list[dict[str, Any]]:
    """One row for each engine; the rate of C MuJoCo is measured beside them."""
    print(f"measuring {name} x {batch:,}: C MuJoCo", file=sys.stderr, flush=True)
    raw_rate = c_rate(start_simulations(name, batch, num_steps), num_steps)
    rows = []
    for engine in engines:
        print(f"measuring {name} x {batch:,}: {engine}", file=sys.stderr, flush=True)
        rate, timed = environment_rate(name, engine, batch, num_steps)
        rows.append(
            {
                "task": name,
                "engine": engine,
                "batch": batch,
                "steps/s": rate,
                "slowest": batch * num_steps / timed.slowest,
                "fastest": batch * num_steps / timed.fastest,
                "C steps/s": raw_rate,
                "ratio": rate / raw_rate,
                "compile s": timed.compile,
            }
        )
    return rows


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

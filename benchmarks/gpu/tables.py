"""The measurements of all tables except `time_to_target`."""

import concurrent.futures
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import floors, timing
from benchmarks.denoising import denoising_part
from benchmarks.gpu.jobs import Row
from benchmarks.gpu.sizes import CONFIGS, Sizes, make_config, products_in, shrink
from benchmarks.pretrain import pretrain_part
from benchmarks.setups import Part, Setup, make_setup
from benchmarks.train_step import critic_update_part, policy_update_part
from dppo_jax.algorithms import make_algorithm
from dppo_jax.rollout import BoundAct, env_keys, rollout
from dppo_jax.training import seeds
from dppo_jax.types import Array, Obs, PyTree
from experiments.settings import load_config


def compile_together(calls: dict[str, timing.Call]) -> dict[str, timing.Call]:
    """Compile calls in parallel, because compiling MJX uses only one core."""
    lowered = {
        name: jax.jit(call.function).lower(*call.args) for name, call in calls.items()
    }
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiled = pool.map(lambda program: program.compile(), lowered.values())
        return {
            name: calls[name]._replace(function=program)
            for name, program in zip(lowered, compiled)
        }


def rollout_call(setup: Setup, act: BoundAct, env_state: Any) -> timing.Call:
    """The roll-out of an iteration; each call continues where the last one ended."""
    num_chunks = setup.config.rollout.num_chunks

    def run(carry: Any) -> Any:
        env_state, key = carry
        key, rollout_key = jax.random.split(key)
        keys = env_keys(rollout_key, setup.env.num_envs)
        env_state, transitions, _ = rollout(setup.env, act, env_state, keys, num_chunks)
        return (env_state, key), transitions

    carry = env_state, jax.random.key(1)
    return timing.Call(run, (carry,), carry=True)


def measure_end_to_end(
    sizes: Sizes, task: str, engine: str, envs: int
) -> Iterator[Row]:
    """Control steps per second: physics alone, with the policy acting, with learning.

    These are three programs, compiled in parallel without a cache and timed in turns.

    Raises:
        SettingsError: an engine that cannot run here.
    """
    setup = make_setup(make_config(task, sizes, envs=envs, engine=engine))
    algorithm = make_algorithm(setup.env, setup.policy, setup.config)
    begin = time.perf_counter()
    state = jax.jit(algorithm.init)(jax.random.key(0))

    def random_actions(keys: Array, obs: Obs) -> tuple[Array, PyTree]:
        del obs
        shape = setup.env.action_shape
        draw = jax.vmap(lambda key: jax.random.uniform(key, shape, minval=-1.0))
        return draw(keys), ()

    def policy_actions(keys: Array, obs: Obs) -> tuple[Array, PyTree]:
        return setup.policy.act(state.params, keys, obs)

    calls = compile_together(
        {
            "physics": rollout_call(setup, random_actions, state.env),
            "acting": rollout_call(setup, policy_actions, state.env),
            "learning": timing.Call(algorithm.step, (state,), carry=True),
        }
    )
    compiled = time.perf_counter() - begin
    timings = timing.measure_together(list(calls.values()), max_seconds=sizes.seconds)
    steps = envs * sizes.chunks * setup.env.action_shape[0]
    row: Row = {"control steps": steps}
    for name, timed in zip(calls, timings):
        row[f"{name} steps/s"] = steps / timed.median
        row[f"{name} slowest"] = steps / timed.slowest
        row[f"{name} fastest"] = steps / timed.fastest
    yield row | {"compile s": compiled}


def measure_seeds(sizes: Sizes, number: int) -> Iterator[Row]:
    """An iteration of `avoid` with `number` seeds side by side."""
    config = load_config(CONFIGS["avoid"])
    config.env.engine = "mjx"
    if sizes.hidden is not None:
        config.rollout.num_chunks = sizes.chunks
        config.algorithm.ppo.update(epochs=1, batch_size=250)
    shrink(config, sizes)
    setup = make_setup(config)
    single = make_algorithm(setup.env, setup.policy, config)
    algorithm = seeds.many(single, number)
    state = jax.jit(algorithm.init)(jax.random.split(jax.random.key(0), number))
    timed = timing.measure(
        jax.jit(algorithm.step), state, carry=True, max_seconds=sizes.seconds
    )
    steps = config.rollout.num_envs * config.rollout.num_chunks
    yield {
        "iteration s": timed.median,
        "per seed s": timed.median / number,
        "control steps/s": number * steps * setup.env.action_shape[0] / timed.median,
        "compile s": timed.compile,
    }


def measure_denoising(sizes: Sizes, batch: int, precision: str) -> Iterator[Row]:
    """All K denoising steps for `batch` environments, four times."""
    setup = make_setup(make_config(sizes.tasks[0], sizes, precision=precision))
    row = part_row(denoising_part(setup, batch, 4), precision, sizes)
    yield row | {"chunks/s": 4 * batch / row["median s"]}


def measure_update(sizes: Sizes, envs: int, precision: str) -> Iterator[Row]:
    """Gradients and optimizer steps of all minibatches of an iteration."""
    config = make_config(sizes.tasks[0], sizes, envs=envs, precision=precision)
    setup = make_setup(config)
    for make in (policy_update_part, critic_update_part):
        yield part_row(make(setup), precision, sizes)


def measure_pretrain(sizes: Sizes, batch: int, precision: str) -> Iterator[Row]:
    """An epoch of cloning."""
    config = make_config(sizes.tasks[0], sizes, precision=precision)
    config.pretrain.batch_size = batch
    part = pretrain_part(make_setup(config), sizes.updates)
    row = part_row(part, precision, sizes)
    yield row | {"samples/s": batch * sizes.updates / row["median s"]}


def part_row(part: Part, precision: str, sizes: Sizes) -> Row:
    """The row of a part, without its floor, for which four more programs compile."""
    with products_in(precision):
        timed = timing.measure(
            part.call.function,
            *part.call.args,
            carry=part.call.carry,
            max_seconds=sizes.seconds,
        )
    flops = floors.flops(part.call.function, *part.call.args)
    return {
        "part": part.name,
        "median s": timed.median,
        "fastest": timed.fastest,
        "slowest": timed.slowest,
        "GFLOP": flops / 1e9,
        "TFLOP/s": flops / timed.median / 1e12,
        "compile s": timed.compile,
    }


def measure_matmul(width: int, precision: str) -> Iterator[Row]:
    """The device's rate for square products."""
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    with products_in(precision):
        yield {"TFLOP/s": floors.matmul_rate(width, width, dtype) / 1e12}

"""What one GPU does with this project, in eight minutes, the most telling rows first.

    python -m benchmarks.gpu [--max-minutes 8] [--only TABLE ...] [--engines mjx ...]
        [--data FOLDER] [--small] [--json PATH]

Tables, in the order in which they are measured:

- `end_to_end`: control steps per second of Hopper and HalfCheetah, contacts on, in
  three columns. `physics`: environments under random actions; `acting`: the same
  roll-out with the actions of the diffusion policy, all K denoising steps of every
  chunk; `learning`: whole iterations of fine-tuning, twenty updates each.
- `time_to_target`: from demonstrations to a mean success or return, a row for every
  evaluation on the way; `seconds` count from before cloning, compiling included.
  `avoid` makes its own demonstrations, Hopper needs `--data`.
- `seeds`: an iteration of many seeds of `avoid` side by side.
- `denoising`, `update`, `pretrain`, `matmul`: parts by precision. "tensorfloat32" lets
  float32 products round their operands to ten bits, "bfloat16" is `compute_dtype` of
  policy and critic.

Rows are written to `benchmarks/results/<device>-<date>.json` as they come. On a GPU
compiling takes most of the time (a minute and a half for a row of Hopper on MJX), and
`--max-minutes` holds for it too: a row that is not done by then is cut off. One that
fails (memory, compiler) says so and the others go on; what this machine or version
cannot do, and what no time is left for, is listed as skipped, with the reason.
`--small` measures the same at sizes for a CPU, to try the program out.
"""

import argparse
import concurrent.futures
import functools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks import floors, timing
from benchmarks.denoising import denoising_part
from benchmarks.pretrain import pretrain_part
from benchmarks.setups import (
    Part,
    Setup,
    make_setup,
    set_compute_dtype,
)
from benchmarks.train_step import critic_update_part, policy_update_part
from dppo_jax.algorithms import make_algorithm
from dppo_jax.algorithms.clone import make_pretrain
from dppo_jax.demonstrations.dataset import Episodes, normalize_episodes, windows
from dppo_jax.demonstrations.formats import load_demonstrations
from dppo_jax.envs.build import make_env
from dppo_jax.envs.physics import resolve_engine
from dppo_jax.evaluate import Evaluation, summarize
from dppo_jax.rollout import BoundAct, env_keys, rollout
from dppo_jax.training import seeds
from dppo_jax.types import Algorithm, Array, Obs, PyTree
from experiments import collect, common
from experiments.settings import load_config

TABLES = (
    *("end_to_end", "time_to_target", "seeds"),
    *("denoising", "update", "pretrain", "matmul"),
)
ENGINES = ("mjx", "mjx-warp")
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
# Variants with minibatches of chains, except `avoid`.
CONFIGS = {
    "hopper": "experiments/configs/hopper.py:fast",
    "halfcheetah": "experiments/configs/halfcheetah.py:fast",
    "avoid": "experiments/configs/avoid.py:m1",
}
CUT_OFF = "cut off when"


class Sizes(NamedTuple):
    """How much is measured.

    tasks: of `end_to_end`, the first one also of the parts.
    batches: environments, the most telling first.
    widths: of square products.
    seeds: side by side.
    updates: minibatches of cloning.
    chunks: of every environment in an iteration.
    hidden: layers of all networks; None: those of the configurations.
    seconds: of repeating a measurement.
    targets: tasks of `time_to_target`.
    target_settings: what it changes of theirs.
    target_seconds: after which fine-tuning gives up.
    """

    tasks: tuple[str, ...]
    batches: tuple[int, ...]
    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    updates: int
    chunks: int
    hidden: tuple[int, ...] | None
    seconds: float
    targets: tuple[str, ...]
    target_settings: dict[str, dict[str, Any]]
    target_seconds: float


FULL = Sizes(
    tasks=("hopper", "halfcheetah"),
    batches=(4096, 1024),
    widths=(512, 8192),
    seeds=(1, 16),
    updates=500,
    chunks=16,
    hidden=None,
    seconds=3.0,
    targets=("avoid", "hopper"),
    # A GPU steps 512 environments as fast as 40, so an iteration has five times the
    # chunks of `:fast` in two fifths of its steps, and as many updates.
    target_settings={
        "hopper": {
            "rollout.num_envs": 512,
            "rollout.num_steps": 50,
            "algorithm.ppo.batch_size": 25_600,
            "loop.pretrain.num_epochs": 30,
            "pretrain.cycle_epochs": 30,
        },
        "avoid": {},
    },
    target_seconds=240.0,
)
SMALL = Sizes(
    tasks=("avoid",),
    batches=(8,),
    widths=(64,),
    seeds=(2,),
    updates=2,
    chunks=5,
    hidden=(16, 16, 16),
    seconds=0.3,
    targets=("avoid",),
    target_settings={
        "avoid": {
            "collect.episodes_per_mode": 1,
            "evaluate.num_episodes": 4,
            "evaluate.num_envs": 4,
            "loop.finetune.num_iterations": 2,
            "rollout.num_envs": 4,
            "rollout.num_steps": 5,
            "algorithm.ppo.batch_size": 100,
            "loop.pretrain.num_epochs": 2,
        }
    },
    target_seconds=5.0,
)


class Target(NamedTuple):
    """What fine-tuning is to reach.

    metric: of deterministic evaluations, their mean; score: how much of it.
    evaluate_every: iterations.
    """

    config: str
    metric: str
    score: float
    evaluate_every: int


TARGETS = {
    "hopper": Target("experiments/configs/hopper.py:fast", "episode_return", 3000.0, 6),
    "avoid": Target("experiments/configs/avoid.py:demo", "success", 0.95, 10),
}


Row = dict[str, Any]


class Job(NamedTuple):
    """Something to measure: the table it belongs to, what tells its rows apart from
    others, and what measures them; rows it has yielded stay, whatever comes after."""

    table: str
    about: Row
    run: Callable[[], Iterable[Row]]


def make_config(
    task: str,
    sizes: Sizes,
    *,
    envs: int = 8,
    engine: str = "mjx",
    precision: str = "float32",
) -> ConfigDict:
    """The configuration of a task, at the sizes to measure: 2 epochs of 10 updates.

    Raises:
        ValueError: an engine that cannot be had here.
    """
    config = load_config(CONFIGS[task])
    if precision == "bfloat16":
        set_compute_dtype(config, precision)
    config.env.engine = resolve_engine(engine, engine)
    config.rollout.update(num_envs=envs, num_steps=sizes.chunks)
    config.algorithm.ppo.epochs = 2
    steps = max(1, envs * sizes.chunks // 10)
    config.algorithm.ppo.batch_size = steps * config.model.sampling.num_tuned_steps
    _shrink(config, sizes)
    return config


def _shrink(config: ConfigDict, sizes: Sizes) -> None:
    if sizes.hidden is not None:
        config.model.network.hidden_sizes = sizes.hidden
        config.critic.hidden_sizes = sizes.hidden


def products_in(precision: str) -> Any:
    """A context in which float32 products are computed so; of compilation."""
    tf32 = precision == "tensorfloat32"
    return jax.default_matmul_precision(precision if tf32 else "float32")


def compile_together(calls: dict[str, timing.Call]) -> dict[str, timing.Call]:
    """The calls, compiled side by side: compiling MJX keeps one core busy."""
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
    """A roll-out of an iteration, which goes on from where the last one ended."""
    num_steps = setup.config.rollout.num_steps

    def run(carry: Any) -> Any:
        env_state, key = carry
        key, rollout_key = jax.random.split(key)
        keys = env_keys(rollout_key, setup.env.num_envs)
        env_state, transitions, _ = rollout(setup.env, act, env_state, keys, num_steps)
        return (env_state, key), transitions

    carry = env_state, jax.random.key(1)
    return timing.Call(run, (carry,), carry=True)


def measure_end_to_end(
    sizes: Sizes, task: str, engine: str, envs: int
) -> Iterator[Row]:
    """Control steps per second: physics alone, with the policy acting, with learning.

    Three programs, each compiled from nothing and all at once, then timed in turns.

    Raises:
        ValueError: an engine that cannot be had here, or that would drop contacts.
    """
    if resolve_engine(engine, engine) == "mjx-warp":
        raise ValueError(
            "tasks ask mjx-warp for no room (max_contacts), so that all environments "
            "together have that for the contacts of one."
        )
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


def demonstrations(config: ConfigDict, task: str, data: str | None) -> Episodes:
    """Those in `data`, or for `avoid` scripted ones.

    Raises:
        ValueError: no data for a task that has no script.
    """
    if task == "avoid":
        return normalize_episodes(collect.collect_avoid(config))
    if data is None:
        raise ValueError(f"{task} needs demonstrations; pass --data=FOLDER.")
    return load_demonstrations(data)


def measure_target(
    sizes: Sizes, data: str | None, task: str, precision: str
) -> Iterator[Row]:
    """Clone, then fine-tune and evaluate in turns, until a target; a row each time."""
    target = TARGETS[task]
    config = load_config(target.config)
    config.env.engine = "mjx"
    config.update_from_flattened_dict(sizes.target_settings[task])
    _shrink(config, sizes)
    episodes = demonstrations(config, task, data)
    assert episodes.normalizer is not None  # Both kinds are normalised.
    begin = time.perf_counter()
    with products_in(precision):
        policy = common.build_policy(config, episodes.actions.shape[1])
        params = clone(config, policy, episodes)
        env = make_env(
            config.env,
            normalizer=episodes.normalizer,
            chunk=config.model.chunk,
            num_envs=config.rollout.num_envs,
        )
        algorithm = make_algorithm(env, policy, config)
        score = common.make_score(config, algorithm.act, episodes.normalizer)
        for row in improve(algorithm, params, score, config, target.evaluate_every):
            row = {
                "iteration": row["iteration"],
                target.metric: row[target.metric],
                "target": target.score,
                "control steps": row["control steps"],
                "seconds": time.perf_counter() - begin,
            }
            yield row
            late = row["seconds"] > sizes.target_seconds
            if late or row[target.metric] >= target.score:
                return


def clone(config: ConfigDict, policy: Any, episodes: Episodes) -> PyTree:
    """The policy of `config`, cloned from `episodes`."""
    dataset = windows(episodes, chunk=config.model.chunk, history=config.env.history)
    algorithm = make_pretrain(policy, dataset, config.pretrain)
    state = jax.jit(algorithm.init)(jax.random.key(config.seed))
    step = jax.jit(algorithm.step)
    for _ in range(config.loop.pretrain.num_epochs):
        state, _ = step(state)
    return algorithm.params(state)


def improve(
    algorithm: Algorithm,
    params: PyTree,
    score: Callable[[PyTree], Evaluation],
    config: ConfigDict,
    evaluate_every: int,
) -> Iterator[Row]:
    """Fine-tune `params`; the means of an evaluation before, on the way and after."""
    yield summarize(score(params)) | {"iteration": 0, "control steps": 0}
    state = jax.jit(algorithm.init)(jax.random.key(config.seed), params)
    step = jax.jit(algorithm.step)
    for iteration in range(1, config.loop.finetune.num_iterations + 1):
        state, metrics = step(state)
        last = iteration == config.loop.finetune.num_iterations
        if last or iteration % evaluate_every == 0:
            steps = int(metrics["env_steps"])
            means = summarize(score(algorithm.params(state)))
            yield means | {"iteration": iteration, "control steps": steps}


def measure_seeds(sizes: Sizes, number: int) -> Iterator[Row]:
    """An iteration of `avoid`, of many seeds side by side."""
    config = load_config(CONFIGS["avoid"])
    config.env.engine = "mjx"
    if sizes.hidden is not None:
        config.rollout.num_steps = sizes.chunks
        config.algorithm.ppo.update(epochs=1, batch_size=250)
    _shrink(config, sizes)
    setup = make_setup(config)
    single = make_algorithm(setup.env, setup.policy, config)
    algorithm = seeds.many(single, number)
    state = jax.jit(algorithm.init)(jax.random.split(jax.random.key(0), number))
    timed = timing.measure(
        jax.jit(algorithm.step), state, carry=True, max_seconds=sizes.seconds
    )
    steps = config.rollout.num_envs * config.rollout.num_steps
    yield {
        "iteration s": timed.median,
        "per seed s": timed.median / number,
        "control steps/s": number * steps * setup.env.action_shape[0] / timed.median,
        "compile s": timed.compile,
    }


def measure_denoising(sizes: Sizes, batch: int, precision: str) -> Iterator[Row]:
    """Four times all K denoising steps for `batch` environments."""
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
    """The part alone; its floor would take four more programs to compile."""
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


def make_jobs(
    sizes: Sizes, *, engines: Sequence[str] = ENGINES, data: str | None = None
) -> list[Job]:
    """What to measure, the most telling first."""
    jobs: list[Job] = []

    def add(table: str, run: Callable[..., Iterable[Row]], **about: Any) -> None:
        jobs.append(Job(table, about, functools.partial(run, **about)))

    throughput = functools.partial(measure_end_to_end, sizes)
    reach_target = functools.partial(measure_target, sizes, data)
    for envs in sizes.batches:
        for engine in engines:
            for task in sizes.tasks:
                add("end_to_end", throughput, task=task, engine=engine, envs=envs)
    for task in sizes.targets:
        add("time_to_target", reach_target, task=task, precision="float32")
    for number in sizes.seeds:
        add("seeds", functools.partial(measure_seeds, sizes), number=number)
    for table, measure, about in (
        ("denoising", measure_denoising, {"batch": sizes.batches[0]}),
        ("update", measure_update, {"envs": sizes.batches[-1]}),
        ("pretrain", measure_pretrain, {"batch": 128}),
    ):
        for precision in PRECISIONS:
            run = functools.partial(measure, sizes)
            add(table, run, **about, precision=precision)
    for precision in PRECISIONS:
        for width in sizes.widths:
            add("matmul", measure_matmul, width=width, precision=precision)
    task = sizes.targets[0]
    add("time_to_target", reach_target, task=task, precision="tensorfloat32")
    return jobs


def run_jobs(
    jobs: Sequence[Job],
    *,
    max_minutes: float,
    keep: Callable[[list[Row]], Any],
    clock: Callable[[], float] = time.monotonic,
) -> list[Row]:
    """Rows of all jobs; what fails or has no time left says so in a row of its own.

    Args:
        max_minutes: a job that is not done by then is cut off, and its thread left at
            work: end the process when this returns.
        keep: called with all rows so far whenever there is one more.
        clock: seconds.
    """
    rows: list[Row] = []
    begin = clock()

    def add(row: Row) -> None:
        rows.append(row)
        keep(rows)
        text = " ".join(map(timing.format_cell, row.values()))
        print(f"[{clock() - begin:.0f} s] {text}", file=sys.stderr, flush=True)

    for job in jobs:
        about = {"table": job.table} | job.about
        left = 60 * max_minutes - (clock() - begin)
        if left <= 0:
            add(about | {"skipped": f"no time left of {max_minutes:g} minutes"})
            continue
        try:
            for row in rows_within(job.run, left):
                add(about | row)
        except _CutOff:
            add(about | {"skipped": f"{CUT_OFF} {max_minutes:g} minutes were over"})
        except ValueError as error:  # A setting that cannot be had here.
            add(about | {"skipped": one_line(error)})
        except Exception as error:  # Whatever it is, the other rows matter.
            add(about | {"error": f"{type(error).__name__}: {one_line(error)}"})
        # Compiled programs hold memory of the device.
        jax.clear_caches()
    return rows


class _CutOff(Exception):
    """A job was not done in time."""


def rows_within(run: Callable[[], Iterable[Row]], seconds: float) -> Iterator[Row]:
    """The rows of `run`, one by one, as long as there is time.

    A compiler cannot be interrupted, so `run` has a thread of its own.

    Raises:
        _CutOff: time is up; or whatever `run` raises.
    """
    found: queue.Queue[Row | BaseException | None] = queue.Queue()

    def work() -> None:
        try:
            for row in run():
                found.put(row)
            found.put(None)
        except BaseException as error:
            found.put(error)

    end = time.monotonic() + seconds
    threading.Thread(target=work, daemon=True).start()
    while True:
        try:
            row = found.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            raise _CutOff from None
        if row is None:
            return
        if isinstance(row, BaseException):
            raise row
        yield row


def one_line(error: Exception) -> str:
    """The beginning of what an error says."""
    return " ".join(str(error).split())[:300]


def result_path(report: dict[str, Any], *, small: bool) -> Path:
    """benchmarks/results/<device>-<date>.json; trials are called small-..."""
    path = timing.result_path("small" if small else "gpu", report)
    return path if small else path.with_name(path.name.removeprefix("gpu-"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep and print."""
    parser = argparse.ArgumentParser("benchmarks.gpu")
    add = parser.add_argument
    add("--max-minutes", type=float, default=8.0, help="after which nothing runs")
    add("--only", nargs="+", choices=TABLES, default=TABLES, help="these tables")
    add("--engines", nargs="+", choices=ENGINES, default=ENGINES, help="of end_to_end")
    add("--data", help="demonstrations of Hopper, for its time to target")
    add("--small", action="store_true", help="sizes for a trial on a CPU")
    add("--json", help="file to write")
    options = parser.parse_args(arguments)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sizes = SMALL if options.small else FULL
    if jax.default_backend() == "cpu" and not options.small:
        parser.error("there is no GPU here; --small tries the program out on a CPU.")
    report = timing.start() | {"sizes": sizes._asdict()}
    path = options.json or result_path(report, small=options.small)
    jobs = make_jobs(sizes, engines=options.engines, data=options.data)
    rows = run_jobs(
        [job for job in jobs if job.table in options.only],
        max_minutes=options.max_minutes,
        keep=lambda rows: timing.write_json(path, rows, report),
    )
    for table in options.only:
        print(f"\n{table}")
        timing.print_table([row for row in rows if row["table"] == table])
    print(f"wrote {path}", flush=True)
    if any(CUT_OFF in row.get("skipped", "") for row in rows):
        # Its thread is still at work.
        os._exit(0)


if __name__ == "__main__":
    main()

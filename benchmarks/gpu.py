"""Everything worth knowing about one GPU, in one file and under twenty minutes.

    python -m benchmarks.gpu [--max-minutes 20] [--only TABLE ...] [--small]
        [--json PATH]

Tables: `matmul` (the device's rate for square products), `denoising`, `pretrain`,
`physics` (control steps per second by task, engine and environments), `train_step` (the
split of an iteration) and `compile_time` (two starts). Rows are written to
`benchmarks/results/<device>-<date>.json` as they come. One that fails (memory,
compiler) says so and the others go on; what this machine or version cannot do, and what
no time is left for, is listed as skipped, with the reason. `--small` measures the same
at sizes for a CPU, to try the program out.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks import compile_time, denoising, floors, physics, pretrain, timing
from benchmarks import train_step as step
from benchmarks.setups import set_compute_dtype
from dppo_jax.envs.physics import resolve_engine
from experiments.settings import load_config

TABLES = ("matmul", "denoising", "pretrain", "physics", "train_step", "compile_time")
DTYPES = ("float32", "bfloat16")
CONFIGS = {
    "hopper": "experiments/configs/hopper.py:v0_8",
    "walker2d": "experiments/configs/walker2d.py:v0_8",
    "halfcheetah": "experiments/configs/halfcheetah.py:v0_8",
    "avoid": "experiments/configs/avoid.py:m1",
}


class Sizes(NamedTuple):
    """How much is measured.

    tasks: of physics and of iterations, the most important first.
    batches: environments, the most important first.
    widths: of square products.
    updates: minibatches of cloning.
    chunks: of every environment in an iteration; pairs: of an update.
    hidden: layers of all networks; None: those of the configurations.
    seconds: of repeating a measurement.
    """

    tasks: tuple[str, ...]
    batches: tuple[int, ...]
    widths: tuple[int, ...]
    updates: int
    physics_steps: int
    chunks: int
    pairs: int
    hidden: tuple[int, ...] | None
    seconds: float


FULL = Sizes(
    tasks=tuple(CONFIGS),
    batches=(1024, 4096, 8192, 256),
    widths=(512, 1024, 8192),
    updates=500,
    physics_steps=50,
    chunks=50,
    pairs=50_000,
    hidden=None,
    seconds=5.0,
)
SMALL = Sizes(
    tasks=("avoid",),
    batches=(8, 4),
    widths=(64,),
    updates=2,
    physics_steps=2,
    chunks=2,
    pairs=40,
    hidden=(16, 16, 16),
    seconds=0.3,
)


class Job(NamedTuple):
    """Something to measure: the table and row it belongs to, and what does it."""

    table: str
    about: dict[str, Any]
    run: Callable[[], list[dict[str, Any]]]


def make_config(
    task: str, sizes: Sizes, *, envs: int = 8, engine: str = "auto", dtype="float32"
) -> ConfigDict:
    """The configuration of a task, at the sizes to measure.

    Raises:
        ValueError: an engine or a data type that cannot be had here.
    """
    config = load_config(CONFIGS[task])
    set_compute_dtype(config, dtype)
    if engine != "auto":
        config.env.engine = resolve_engine(engine, engine)
    config.rollout.update(num_envs=envs, num_steps=sizes.chunks)
    config.algorithm.ppo.epochs = 1
    pairs = envs * sizes.chunks * config.model.sampling.num_tuned_steps
    config.algorithm.ppo.batch_size = min(sizes.pairs, pairs)
    if sizes.hidden is not None:
        config.model.network.hidden_sizes = sizes.hidden
        config.critic.hidden_sizes = sizes.hidden
    return config


def measure_matmul(width: int, dtype: str) -> list[dict[str, Any]]:
    rate = floors.matmul_rate(width, width, jnp.dtype(dtype))
    return [{"width": width, "TFLOP/s": rate / 1e12}]


def measure_denoising(sizes: Sizes, batch: int, dtype: str) -> list[dict[str, Any]]:
    config = make_config("hopper", sizes, dtype=dtype)
    return [denoising.measure_batch(config, batch, 4, max_seconds=sizes.seconds)]


def measure_pretrain(sizes: Sizes, batch: int, dtype: str) -> list[dict[str, Any]]:
    config = make_config("hopper", sizes, dtype=dtype)
    seconds = sizes.seconds
    return [pretrain.measure_batch(config, batch, sizes.updates, max_seconds=seconds)]


def measure_physics(
    sizes: Sizes, task: str, engine: str, batch: int
) -> list[dict[str, Any]]:
    resolve_engine(engine, engine)
    num_steps = sizes.physics_steps
    rate, timed = physics.environment_rate(task, engine, batch, num_steps)
    row = {"steps/s": rate, "slowest": batch * num_steps / timed.slowest}
    row["fastest"] = batch * num_steps / timed.fastest
    return [row | {"compile s": timed.compile}]


def measure_step(
    sizes: Sizes, task: str, engine: str, envs: int, dtype: str
) -> list[dict[str, Any]]:
    config = make_config(task, sizes, envs=envs, engine=engine, dtype=dtype)
    return step.measure_all(config, max_seconds=sizes.seconds)


def measure_starts(sizes: Sizes, task: str, engine: str) -> list[dict[str, Any]]:
    config = make_config(task, sizes, engine=engine)
    settings = [f"env.engine={config.env.engine}"]
    settings += [f"rollout.{k}={config.rollout[k]}" for k in ("num_envs", "num_steps")]
    ppo = config.algorithm.ppo
    settings += [f"algorithm.ppo.{k}={ppo[k]}" for k in ("batch_size", "epochs")]
    if sizes.hidden is not None:
        settings.append(f"model.network.hidden_sizes={sizes.hidden}")
    return compile_time.measure_config(CONFIGS[task], settings)


def make_jobs(sizes: Sizes) -> list[Job]:
    """What to measure, the most telling first."""
    jobs: list[Job] = []

    def add(table: str, run: Callable[..., list[dict[str, Any]]], **about: Any) -> None:
        jobs.append(Job(table, about, functools.partial(run, **about)))

    denoise = functools.partial(measure_denoising, sizes)
    clone = functools.partial(measure_pretrain, sizes)
    simulate = functools.partial(measure_physics, sizes)
    iterate = functools.partial(measure_step, sizes)
    first, *other_tasks = sizes.tasks
    usual, *other_batches = sizes.batches
    most = max(sizes.batches)
    many = sorted(sizes.batches)[len(sizes.batches) // 2]
    for dtype in DTYPES:
        for width in sizes.widths:
            add("matmul", measure_matmul, width=width, dtype=dtype)
        for batch in dict.fromkeys((usual, most)):
            add("denoising", denoise, batch=batch, dtype=dtype)
        add("pretrain", clone, batch=min(128, 16 * usual), dtype=dtype)
    add("train_step", iterate, task=first, engine="mjx", envs=usual, dtype="float32")
    for task in sizes.tasks:
        for engine in ("mjx", "mjx-warp"):
            add("physics", simulate, task=task, engine=engine, batch=usual)
    add("train_step", iterate, task=first, engine="mjx", envs=many, dtype="bfloat16")
    add(
        "train_step", iterate, task=first, engine="mjx-warp", envs=many, dtype=DTYPES[0]
    )
    for task in other_tasks:
        add("train_step", iterate, task=task, engine="mjx", envs=usual, dtype=DTYPES[0])
    starts = functools.partial(measure_starts, sizes)
    add("compile_time", starts, task=first, engine="mjx")
    for batch in other_batches:
        for task in sizes.tasks:
            for engine in ("mjx", "mjx-warp"):
                add("physics", simulate, task=task, engine=engine, batch=batch)
    for task in sizes.tasks if many != usual else ():
        add("train_step", iterate, task=task, engine="mjx", envs=many, dtype=DTYPES[0])
    return jobs


def run_jobs(
    jobs: Sequence[Job],
    *,
    max_minutes: float,
    keep: Callable[[list[dict[str, Any]]], Any],
    clock: Callable[[], float] = time.monotonic,
) -> list[dict[str, Any]]:
    """Rows of all jobs; what fails or has no time left says so in a row of its own.

    Args:
        max_minutes: no job is started that would end later, taking as long as the
            longest of its table so far.
        keep: called with all rows so far after every job.
        clock: seconds.
    """
    rows: list[dict[str, Any]] = []
    longest = dict.fromkeys(TABLES, 0.0)
    begin = clock()
    for job in jobs:
        about = {"table": job.table} | job.about
        start = clock()
        left = 60 * max_minutes - (start - begin)
        print(f"{' '.join(map(str, about.values()))} ...", file=sys.stderr, flush=True)
        if left <= 0 or longest[job.table] > left:
            new = [about | {"skipped": f"no time left of {max_minutes:g} minutes"}]
        else:
            try:
                new = [about | row for row in job.run()]
            except ValueError as error:  # A setting that cannot be had here.
                new = [about | {"skipped": one_line(error)}]
            except Exception as error:  # Whatever it is, the other rows matter.
                new = [about | {"error": f"{type(error).__name__}: {one_line(error)}"}]
            longest[job.table] = max(longest[job.table], clock() - start)
            # Compiled programs hold memory of the device.
            jax.clear_caches()
        rows += new
        keep(rows)
    return rows


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
    add("--max-minutes", type=float, default=20.0, help="after which nothing starts")
    add("--only", nargs="+", choices=TABLES, default=TABLES, help="these tables")
    add("--small", action="store_true", help="sizes for a trial on a CPU")
    add("--json", help="file to write")
    options = parser.parse_args(arguments)
    # Starts are measured in processes of their own, which need memory as well.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sizes = SMALL if options.small else FULL
    if jax.default_backend() == "cpu" and not options.small:
        parser.error("there is no GPU here; --small tries the program out on a CPU.")
    report = timing.start() | {"sizes": sizes._asdict()}
    path = options.json or result_path(report, small=options.small)
    jobs = [job for job in make_jobs(sizes) if job.table in options.only]
    rows = run_jobs(
        jobs,
        max_minutes=options.max_minutes,
        keep=lambda rows: timing.write_json(path, rows, report),
    )
    for table in options.only:
        print(f"\n{table}")
        timing.print_table([row for row in rows if row["table"] == table])
    print(f"wrote {path}")


if __name__ == "__main__":
    main()

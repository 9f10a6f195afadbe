"""The command line, and the order of the measurements."""

import argparse
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import timing
from benchmarks.gpu.jobs import CUT_OFF, Job, Row, run_jobs
from benchmarks.gpu.sizes import ENGINES, FULL, PRECISIONS, SMALL, TABLES, Sizes
from benchmarks.gpu.tables import (
    measure_denoising,
    measure_end_to_end,
    measure_matmul,
    measure_pretrain,
    measure_seeds,
    measure_update,
)
from benchmarks.gpu.target import measure_target


def make_jobs(
    sizes: Sizes, *, engines: Sequence[str] = ENGINES, data: str | None = None
) -> list[Job]:
    """The measurements, the most important first."""
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


def result_path(report: dict[str, Any], *, small: bool) -> Path:
    """benchmarks/results/<device>-<date>.json; with `small` small-<device>-..."""
    path = timing.result_path("small" if small else "gpu", report)
    return path if small else path.with_name(path.name.removeprefix("gpu-"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep and print."""
    parser = argparse.ArgumentParser("benchmarks.gpu")
    add = parser.add_argument
    add("--max-minutes", type=float, default=8.0, help="stop after this time")
    add("--only", nargs="+", choices=TABLES, default=TABLES, help="only these")
    add("--engines", nargs="+", choices=ENGINES, default=ENGINES, help="for end_to_end")
    add("--data", help="demonstrations of Hopper, for its time to target")
    add("--small", action="store_true", help="sizes for a trial on a CPU")
    add("--json", help="file to write")
    options = parser.parse_args(arguments)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sizes = SMALL if options.small else FULL
    if jax.default_backend() == "cpu" and not options.small:
        parser.error("JAX sees no GPU; --small tries the program out on a CPU.")
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
        # The thread of the row that was cut off is still running.
        os._exit(0)

"""Measures the time to the end of the first iteration, with and without a warm cache.

    python -m benchmarks.compile_time [--configs FILE.py:VARIANT ...]
        [--set KEY=VALUE ...] [--json [PATH]]

Each configuration starts in a new process with an empty compilation cache (`cold`), and
again with the cache that this start filled (`warm`). `import s` is the time to import
the package, `setup s` the time to make environment, networks and initial state.
`trace s`, `lower s` and `compile s` are those of `step` alone, and `first s` is the
first iteration without them. `wait s` is the total, from the start of the process to
the numbers of the first iteration.

`all compile s` is the time that JAX spent on compiling (or reading back) all programs
of the process. `programs` is their number, `found` the number found in the cache, and
`slowest` the name of the one that took longest. JAX does not cache programs that call
back into Python, as `step` does with engine "mujoco", so every start compiles them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import timing

CONFIGS = tuple(
    f"experiments/configs/{name}"
    for name in (
        *("avoid.py:m1", "hopper.py:v0_8", "walker2d.py:v0_8"),
        "halfcheetah.py:v0_8",
    )
)
# Events that JAX records for every program.
_COMPILE = "/jax/core/compile/backend_compile_duration"
_FOUND = "/jax/compilation_cache/cache_hits"


def measure_config(
    spec: str, settings: Sequence[str] = (), *, timeout: float = 900.0
) -> list[dict[str, Any]]:
    """Two rows: a start with an empty cache, and one with the cache that it filled.

    Args:
        spec: FILE.py:VARIANT.
        settings: KEY=VALUE, as in `rollout.num_envs=8`.

    Raises:
        RuntimeError: a process failed; the message has the end of its error output.
    """
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for start in ("cold", "warm"):
            print(f"measuring {spec}, {start}", file=sys.stderr, flush=True)
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
            command = [sys.executable, "-m", "benchmarks.compile_time"]
            command += ["--child", spec, repr(time.time()), "--set", *settings]
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
            if done.returncode:
                raise RuntimeError(f"{spec}, {start}: {done.stderr[-300:]}")
            row = json.loads(done.stdout.splitlines()[-1])
            files = [x for x in Path(cache).rglob("*") if x.is_file()]
            size = sum(x.stat().st_size for x in files)
            rows.append(
                {"config": spec, "start": start} | row | {"cache MB": size / 1e6}
            )
    return rows


def run_child(spec: str, started: float, settings: Sequence[str]) -> dict[str, Any]:
    """The times of a new process up to the end of its first iteration.

    Args:
        started: `time.time()` when the process was started.
    """
    from experiments import finetune  # A user imports it too.

    del finetune
    import jax

    from benchmarks import setups
    from dppo_jax import runtime
    from dppo_jax.algorithms import make_algorithm
    from experiments.settings import load_config, override

    spent: list[tuple[float, str]] = []
    found: list[str] = []

    def compiled(event: str, duration_secs: float, **about: str | int) -> None:
        if event == _COMPILE:
            spent.append((duration_secs, str(about.get("fun_name", "?"))))

    def seen(event: str, **_: str | int) -> None:
        if event == _FOUND:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(compiled)
    jax.monitoring.register_event_listener(seen)
    runtime.configure()
    laps = [time.time()]
    config = load_config(spec)
    override(config, settings, "--set ")
    setup = setups.make_setup(config)
    algorithm = make_algorithm(setup.env, setup.policy, config)
    state = jax.block_until_ready(algorithm.init(jax.random.key(0)))
    laps.append(time.time())
    traced = jax.jit(algorithm.step).trace(state)
    laps.append(time.time())
    lowered = traced.lower()
    laps.append(time.time())
    step = lowered.compile()
    laps.append(time.time())
    jax.block_until_ready(step(state))
    laps.append(time.time())
    names = ("import s", "setup s", "trace s", "lower s", "compile s", "first s")
    ends = dict(zip(names, laps))
    begins = [started, *laps]
    row: dict[str, Any] = {x: ends[x] - begin for x, begin in zip(names, begins)}
    return row | {
        "wait s": laps[-1] - started,
        "all compile s": sum(seconds for seconds, _ in spent),
        "programs": len(spent),
        "found": len(found),
        "slowest": max(spent, default=(0.0, "-"))[1],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and, if asked, keep the table."""
    parser = argparse.ArgumentParser("benchmarks.compile_time")
    add = parser.add_argument
    add("--configs", nargs="+", default=CONFIGS, help="FILE.py:VARIANT")
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for all configs")
    add("--child", nargs=2, help=argparse.SUPPRESS)
    timing.add_json(parser)
    options = parser.parse_args(arguments)
    if options.child:
        spec, started = options.child
        print(json.dumps(run_child(spec, float(started), options.set)))
        return
    report = timing.start() | {"settings": list(options.set)}
    rows = [row for x in options.configs for row in measure_config(x, options.set)]
    timing.finish("compile_time", rows, report, options.json)


if __name__ == "__main__":
    main()
